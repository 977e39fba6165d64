/* One state through an interval of a synaptic LTC cell or a LiquidCell; kernels.c includes this. */

/* middle = the input at `fraction` of the way from `from` to `to` */
static inline const real *input_at(const real *from, const real *to, real fraction, int64_t count,
                                   real *restrict middle)
{
    if (from == to)
        return from;
    for (int64_t i = 0; i < count; i++)
        middle[i] = from[i] + fraction * (to[i] - from[i]);
    return middle;
}

/* Whether no synapse's exponent can leave the range of exp2_within: clamping each of them would
 * be a fifth of all work. */
static inline int all_within(const real *x, int64_t count, real reach)
{
    int outside = 0;
    for (int64_t i = 0; i < count; i++)
        outside |= !(x[i] <= reach) | !(x[i] >= -reach);
    return !outside;
}

/* 2^y where |y| <= LNN_EXP2_MOST, with a relative error below 1.8e-7 in float: the caller clamps. */
#ifdef LNN_DOUBLE
enum { EXP2_TERMS = 13 };
static const real exp2_terms[EXP2_TERMS] = { /* of exp(f ln 2), Taylor again */
    1.36914888539041281e-12, 2.56784359934882055e-11, 4.44553827187081162e-10,
    7.05491162080112336e-09, 1.01780860092396999e-07, 1.32154867901443095e-06,
    1.52527338040598411e-05, 1.54035303933816088e-04, 1.33335581464284433e-03,
    9.61812910762847688e-03, 5.55041086648215831e-02, 2.40226506959100722e-01,
    6.93147180559945286e-01,
};
#else
enum { EXP2_TERMS = 5 };
static const real exp2_terms[EXP2_TERMS] = { /* minimax with 1 for f = 0: 9.2e-8 of 2^f */
    1.326472720684662e-3f, 9.671512652607930e-3f, 5.550733743347280e-2f,
    2.402224208517665e-1f, 6.931469775990393e-1f,
};
#endif
typedef lnn_bits vector_bits __attribute__((vector_size(LNN_REGISTER)));

static inline __attribute__((always_inline)) vector exp2_within(vector y)
{
    const vector shifted = y + (real)LNN_ROUND, f = y - (shifted - (real)LNN_ROUND);
    vector p = f * exp2_terms[0] + exp2_terms[1];
    for (int k = 2; k < EXP2_TERMS; k++)
        p = p * f + exp2_terms[k];
    p = p * f + (real)1.0;
    /* what is above the low bits of `shifted` is shifted out */
    return (vector)((vector_bits)p + ((vector_bits)shifted << LNN_MANTISSA));
}

static inline vector either(mask which, vector yes, vector no)
{
    return (vector)(((mask)yes & which) | ((mask)no & ~which));
}

/* How far synapses are open whose sources are at x; is_tame: as all_within says. */
static inline __attribute__((always_inline)) vector open_at(vector x, vector mu, vector steep,
                                                            const int is_tame)
{
    vector y = (x - mu) * steep;
    if (!is_tame) { /* a NaN stays one */
        const vector most = (vector){0} + LNN_EXP2_MOST;
        y = either(y < -most, -most, y);
        y = either(y > most, most, y);
    }
    return (real)1.0 / ((real)1.0 + exp2_within(y));
}

/* Whether this variant finds its sources in two registers by one instruction. */
#if LNN_REGISTER >= 32 && defined(__GNUC__) && !defined(__clang__)
#define LNN_PERMUTES 1
#define PERMUTED(few, places) __builtin_shuffle((few)[0], (few)[1], places)
#else
#define LNN_PERMUTES 0
#define PERMUTED(few, places) ((void)(places), (few)[0])
#endif

/* How the synapses of a slot find their sources: they share it, take each its own from two
 * registers, or from memory. */
enum { SHARED, FROM_REGISTERS, FROM_MEMORY };

/* Add the conductances and currents of a group's synapses whose sources are at x. The sums stay in
 * registers. */
static inline __attribute__((always_inline)) void
conduct_group(const lnn_bundle *bundle, int64_t group, const real *x, real *restrict g,
              real *restrict current, const int is_tame, const int found)
{
    enum { PARTS = LNN_GROUP / VECTOR };
    vector conductance[PARTS], pulled[PARTS];
    for (int p = 0; p < PARTS; p++) {
        conductance[p] = CONST_AT(vector, g + p * VECTOR);
        pulled[p] = CONST_AT(vector, current + p * VECTOR);
    }
    vector few[2] = {{0}};
    for (int p = 0; found == FROM_REGISTERS && p < 2; p++)
        few[p] = CONST_AT(vector, x + p * VECTOR);
    for (int64_t k = bundle->begin[group]; k < bundle->begin[group + 1]; k++) {
        const real *numbers = bundle->numbers + k * LNN_NUMBERS * LNN_GROUP;
        const lnn_place *source = bundle->source + k * LNN_GROUP;
        for (int p = 0; p < PARTS; p++, numbers += VECTOR, source += VECTOR) {
            vector at;
            if (found == FROM_REGISTERS) {
                at = PERMUTED(few, CONST_AT(mask, source));
            } else {
                real each[VECTOR];
                for (int l = 0; l < VECTOR; l++)
                    each[l] = x[source[found == FROM_MEMORY ? l : 0]];
                at = CONST_AT(vector, each);
            }
            const vector s = open_at(at, CONST_AT(vector, numbers + LNN_MU * LNN_GROUP),
                                     CONST_AT(vector, numbers + LNN_STEEP * LNN_GROUP), is_tame);
            conductance[p] += s * CONST_AT(vector, numbers + LNN_W * LNN_GROUP);
            pulled[p] += s * CONST_AT(vector, numbers + LNN_CURRENT * LNN_GROUP);
        }
    }
    for (int p = 0; p < PARTS; p++) {
        AT(vector, g + p * VECTOR) = conductance[p];
        AT(vector, current + p * VECTOR) = pulled[p];
    }
}

/* Add the conductances and currents of the synapses whose sources are at x. */
static void conduct_one(const lnn_bundle *bundle, const real *x, real *restrict g,
                        real *restrict current)
{
    const int is_tame = all_within(x, bundle->sources, bundle->reach);
    real few[2 * VECTOR] = {0};
    const int permutes = LNN_PERMUTES && bundle->sources <= 2 * VECTOR;
    if (permutes)
        memcpy(few, x, (size_t)bundle->sources * sizeof *x);
    for (int64_t i = 0; i < bundle->groups; i++, g += LNN_GROUP, current += LNN_GROUP)
        if (is_tame && bundle->is_shared[i])
            conduct_group(bundle, i, x, g, current, 1, SHARED);
        else if (is_tame && permutes)
            conduct_group(bundle, i, few, g, current, 1, FROM_REGISTERS);
        else if (is_tame)
            conduct_group(bundle, i, x, g, current, 1, FROM_MEMORY);
        else
            conduct_group(bundle, i, x, g, current, 0, FROM_MEMORY);
}

static void synaptic_ltc(const lnn_synaptic_plan *plan, const real *from, const real *to,
                         real *restrict state, real *restrict work, int64_t steps, real dt)
{
    const int64_t count = plan->lanes;
    const size_t bytes = (size_t)count * sizeof(real);
    real *of_input = work, *g = of_input + 2 * count, *current = g + count;
    real *middle = current + count;
    for (int64_t k = 0; k < steps; k++) {
        if (k == 0 || from != to) {
            const real fraction = ((real)k + (real)0.5) / (real)steps;
            const real *x = input_at(from, to, fraction, plan->seen, middle);
            memcpy(of_input, plan->gl, bytes);
            memcpy(of_input + count, plan->leak, bytes);
            conduct_one(&plan->sensory, x, of_input, of_input + count);
        }
        memcpy(g, of_input, 2 * bytes);
        conduct_one(&plan->synapses, state, g, current);
        if (plan->is_fused)
            for (int64_t i = 0; i < count; i++)
                state[i] = (plan->cm[i] * state[i] + dt * current[i]) / (plan->cm[i] + dt * g[i]);
        else
            for (int64_t i = 0; i < count; i++) {
                const real equilibrium = current[i] / g[i];
                const real kept = lnn_exp(-dt * g[i] / plan->cm[i]);
                state[i] = equilibrium + (state[i] - equilibrium) * kept;
            }
    }
}

static void liquid_cell(const lnn_liquid_plan *plan, const real *from, const real *to,
                        real *restrict state, real *restrict work, int64_t steps, real dt)
{
    const int64_t count = plan->lanes;
    real *f = work, *tau = f + count, *hidden = tau + count, *middle = hidden + 2 * count;
    for (int64_t k = 0; k < steps; k++) {
        if (k == 0 || from != to) {
            const real fraction = ((real)k + (real)0.5) / (real)steps;
            const real *x = input_at(from, to, fraction, plan->seen, middle);
            affine(&plan->tau, plan->tau.bias, x, tau);
            affine(&plan->hidden, plan->hidden.bias, x, hidden);
            for (int64_t i = 0; i < plan->hidden.outputs; i++)
                hidden[i] *= lnn_sigmoid(hidden[i]);
            affine(&plan->out, plan->out.bias, hidden, f);
        }
        for (int64_t i = 0; i < count; i++) {
            const real kept = lnn_exp(-dt / (lnn_softplus(tau[i]) + (real)0.1));
            state[i] = f[i] + (state[i] - f[i]) * kept;
        }
    }
}
