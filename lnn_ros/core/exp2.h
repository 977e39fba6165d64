/* 2^y, as synapses need it: of a number or of a vector of them, within bounds that the caller keeps. */
#ifndef LNN_EXP2_H
#define LNN_EXP2_H

#include "elementary.h"

/* Relative error below 1.8e-7 in float.
 *
 * 2^y for |y| <= LNN_EXP2_MOST alone: the caller clamps, in a loop of its own. In the same loop GCC
 * makes two paths of the clamp, and two selects behind the whole of the rest. */
#ifdef LNN_DOUBLE
#define LNN_EXP2_MOST 1020.0
enum { LNN_EXP2_TERMS = 13 };
static const real lnn_exp2_terms[LNN_EXP2_TERMS] = { /* of exp(f ln 2), Taylor again */
    1.36914888539041281e-12, 2.56784359934882055e-11, 4.44553827187081162e-10,
    7.05491162080112336e-09, 1.01780860092396999e-07, 1.32154867901443095e-06,
    1.52527338040598411e-05, 1.54035303933816088e-04, 1.33335581464284433e-03,
    9.61812910762847688e-03, 5.55041086648215831e-02, 2.40226506959100722e-01,
    6.93147180559945286e-01,
};
#else
#define LNN_EXP2_MOST 124.0f
enum { LNN_EXP2_TERMS = 5 };
static const real lnn_exp2_terms[LNN_EXP2_TERMS] = { /* minimax with 1 for f = 0: 9.2e-8 of 2^f */
    1.326472720684662e-3f, 9.671512652607930e-3f, 5.550733743347280e-2f,
    2.402224208517665e-1f, 6.931469775990393e-1f,
};
#endif

/* for `number`, real or a vector of them, of which `bits` has as many; what is above the low bits of
 * `shifted` is shifted out */
#define LNN_DEFINE_EXP2(name, number, bits)                                                        \
    static inline __attribute__((always_inline)) number name(number y)                             \
    {                                                                                              \
        const number shifted = y + (real)LNN_ROUND;                                                \
        const number f = y - (shifted - (real)LNN_ROUND);                                          \
        number p = f * lnn_exp2_terms[0] + lnn_exp2_terms[1];                                      \
        for (int k = 2; k < LNN_EXP2_TERMS; k++)                                                   \
            p = p * f + lnn_exp2_terms[k];                                                         \
        p = p * f + (real)1.0;                                                                     \
        bits whole, power;                                                                         \
        memcpy(&whole, &shifted, sizeof whole);                                                    \
        memcpy(&power, &p, sizeof power);                                                          \
        power += whole << LNN_MANTISSA;                                                            \
        memcpy(&p, &power, sizeof p);                                                              \
        return p;                                                                                  \
    }

LNN_DEFINE_EXP2(lnn_exp2_within, real, lnn_bits)

#endif
