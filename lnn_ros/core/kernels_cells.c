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

/* Whether no synapse's exponent can leave the range of lnn_exp2_within: clamping each of them would
 * be a fifth of all work. */
static inline int all_within(const real *x, int64_t count, real reach)
{
    int outside = 0;
    for (int64_t i = 0; i < count; i++)
        outside |= !(x[i] <= reach) | !(x[i] >= -reach);
    return !outside;
}

static inline real sum_between(const real *x, int64_t begin, int64_t end)
{
    real sum = 0;
    if (end - begin >= LNN_LANES) {
        lanes sums = {0};
        for (; begin + LNN_LANES <= end; begin += LNN_LANES)
            sums += CONST_AT(lanes, x + begin);
        real part[LNN_LANES];
        memcpy(part, &sums, sizeof part);
        for (int width = LNN_LANES / 2; width; width /= 2) /* in pairs: in turn, each would wait */
            for (int k = 0; k < width; k++)
                part[k] += part[k + width];
        sum = part[0];
    }
    for (; begin < end; begin++)
        sum += x[begin];
    return sum;
}

/* opened and pulled: the conductance and current of each synapse; is_tame: as all_within says. */
static inline __attribute__((always_inline)) void
open_each(const lnn_wired *wired, const real *x, real *restrict opened, real *restrict pulled,
          const int is_tame)
{
    const int64_t count = wired->begin[wired->targets];
    const real most = LNN_EXP2_MOST;
    for (int64_t k = 0; k < count; k += LNN_CHUNK) {
        real y[LNN_CHUNK];
        for (int l = 0; l < LNN_CHUNK; l++)
            y[l] = x[wired->source[k + l]];
        for (int l = 0; l < LNN_CHUNK; l++)
            y[l] = (y[l] - wired->mu[k + l]) * wired->steep[k + l];
        if (!is_tame)
            for (int l = 0; l < LNN_CHUNK; l++) {
                const real above = y[l] < -most ? -most : y[l]; /* a NaN stays one */
                y[l] = above > most ? most : above;
            }
        for (int l = 0; l < LNN_CHUNK; l++) {
            const real s = 1 / (1 + lnn_exp2_within(y[l]));
            opened[k + l] = wired->w[k + l] * s;
            pulled[k + l] = wired->current[k + l] * s;
        }
    }
}

/* Add the conductances and currents of the synapses whose sources are at x. */
static void conduct_one(const lnn_wired *wired, const real *x, real *restrict g,
                        real *restrict current, real *restrict opened)
{
    real *pulled = opened + lnn_chunked(wired->begin[wired->targets]);
    if (all_within(x, wired->sources, wired->reach))
        open_each(wired, x, opened, pulled, 1);
    else
        open_each(wired, x, opened, pulled, 0);
    for (int64_t i = 0; i < wired->targets; i++) {
        g[i] += sum_between(opened, wired->begin[i], wired->begin[i + 1]);
        current[i] += sum_between(pulled, wired->begin[i], wired->begin[i + 1]);
    }
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
            conduct_one(&plan->sensory, x, of_input, of_input + count, plan->opened);
        }
        memcpy(g, of_input, 2 * bytes);
        conduct_one(&plan->synapses, state, g, current, plan->opened);
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
