/* exp, 1 - exp, sigmoid, softplus and tanh without branches or calls, so that GCC vectorises loops.
 *
 * libm's expf alone would be most of a step's time. Relative error below 1.5e-7 in float and 1e-15
 * in double, of softplus twice that (test_core.py holds them to it). Infinite arguments are fine,
 * NaN comes out as NaN: every clamp is written so that a NaN fails its comparison and stays.
 */
#ifndef LNN_ELEMENTARY_H
#define LNN_ELEMENTARY_H

#include <string.h>

#include "core.h"

#ifdef LNN_DOUBLE
typedef uint64_t lnn_bits;
#define LNN_EXP_MIN -708.0
#define LNN_EXP_MAX 709.0
#define LNN_MANTISSA 52
/* adding it rounds to a whole number, which then stands in the low bits */
#define LNN_ROUND 6755399441055744.0
#define LNN_LN2_HIGH 6.93145751953125e-1
#define LNN_LN2_LOW 1.42860682030941723212e-6
#else
typedef uint32_t lnn_bits;
#define LNN_EXP_MIN -87.0f
#define LNN_EXP_MAX 88.0f
#define LNN_MANTISSA 23
#define LNN_ROUND 12582912.0f
#define LNN_LN2_HIGH 0.693359375f
#define LNN_LN2_LOW -2.12194440e-4f
#endif

#define LNN_LOG2_E 1.44269504088896340736

/* exp(x) = power (1 + the value returned) with a power of two and a small value; |x| is clamped. */
static inline real lnn_exp_parts(real x, real *power)
{
    x = x < (real)LNN_EXP_MIN ? (real)LNN_EXP_MIN : x;
    x = x > (real)LNN_EXP_MAX ? (real)LNN_EXP_MAX : x;
    /* x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts (Cody, Waite) keeps r exact */
    const real shifted = x * (real)LNN_LOG2_E + (real)LNN_ROUND;
    const real n = shifted - (real)LNN_ROUND;
    const real r = (x - n * (real)LNN_LN2_HIGH) - n * (real)LNN_LN2_LOW;
#ifdef LNN_DOUBLE
    real p = 1.0 / 6227020800.0; /* Taylor's, to r^13: what is left out is below 5e-18 */
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
#else
    real p = 1.9875691500e-4f; /* Cephes, expf */
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
#endif
    lnn_bits bits; /* of 2^n: n stands in the low bits of `shifted`, and only they are kept */
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << LNN_MANTISSA) + ((((lnn_bits)1 << (sizeof(real) * 8 - 2)) -
                                      ((lnn_bits)1 << LNN_MANTISSA)));
    memcpy(power, &bits, sizeof *power);
    return p * r * r + r;
}

static inline real lnn_exp(real x)
{
    real power;
    const real small = lnn_exp_parts(x, &power);
    return (small + (real)1.0) * power;
}

/* 1 - exp(-x), good to all its digits also where x is small */
static inline real lnn_released(real x)
{
    real power;
    const real small = lnn_exp_parts(-x, &power);
    return ((real)1.0 - power) - small * power;
}

static inline real lnn_sigmoid(real x)
{
    return (real)1.0 / ((real)1.0 + lnn_exp(-x));
}

/* log(1 + exp(x)) */
static inline real lnn_softplus(real x)
{
    const real size = x < 0 ? -x : x, y = lnn_exp(-size);
    const real z = y / (2 + y), zz = z * z; /* log(1 + y) = 2 artanh(z), z at most 1/3 */
#ifdef LNN_DOUBLE
    enum { TERMS = 17 };
#else
    enum { TERMS = 8 };
#endif
    real p = (real)1.0 / (2 * TERMS + 1);
    for (int k = TERMS - 1; k >= 0; k--)
        p = p * zz + (real)1.0 / (real)(2 * k + 1);
    return (x < 0 ? 0 : x) + 2 * z * p;
}

static inline real lnn_tanh(real x)
{
    const real size = x < 0 ? -x : x;
    const real large = (real)1.0 - (real)2.0 / (lnn_exp((real)2.0 * size) + (real)1.0);
    const real z = x * x; /* near 0 that difference would lose digits: Cephes, tanhf and tanh */
#ifdef LNN_DOUBLE
    real p = -9.64399179425052238628e-1;
    p = p * z - 9.92877231001918586564e1;
    p = p * z - 1.61468768441708447952e3;
    real q = z + 1.12811678491632931402e2;
    q = q * z + 2.23548839060100448583e3;
    q = q * z + 4.84406305325125486048e3;
    p /= q;
#else
    real p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
#endif
    const real small = x + x * z * p;
    const real signed_large = x < 0 ? -large : large;
    return size < (real)0.625 ? small : signed_large;
}

#endif
