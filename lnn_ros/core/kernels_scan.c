/* The inner loops of training; kernels.c includes this file. docs/network.md derives the gradients.
 *
 * The neural form and LiquidCell go sample by sample, with lanes across units. The synaptic form
 * takes STRIP or LNN_WIDE samples side by side, with lanes across samples: however sparse the
 * wiring, no lane is empty, and a synapse's numbers are read once for all samples. A tile is
 * (things, samples). */

/* Copies for each kind of tile; the sanitizers would take minutes to compile them. */
#if defined(__SANITIZE_ADDRESS__)
#define INLINE static
#else
#define INLINE static inline __attribute__((always_inline))
#endif

/* The synaptic form's vectors: a register, or `lanes` where that is several. */
#if LNN_REGISTER == 64 && !defined(LNN_DOUBLE)
#define LNN_STRIP 16
#else
#define LNN_STRIP 8
#endif
enum { STRIP = LNN_STRIP };
typedef real strip __attribute__((vector_size(STRIP * sizeof(real)), aligned(sizeof(real)),
                                  may_alias));

static inline int64_t row_at(const lnn_scan *scan, int64_t t)
{
    return (scan->interval && scan->is_held ? scan->interval[t] : t) * 2 * scan->units;
}

/* The gradient that comes in at the end of sub-step t of a sequence that ends at `end`, or NULL. */
static inline const real *coming_in(const lnn_scan_plan *plan, int64_t t, int64_t end)
{
    const int64_t *interval = plan->scan->interval;
    if (!interval)
        return plan->of->ends + t * plan->scan->units;
    if (t + 1 < end && interval[t + 1] == interval[t])
        return NULL;
    return plan->of->ends + interval[t] * plan->scan->units;
}

/* The sum of a multiple of LNN_LANES numbers: a plain loop would have to add them in turn. */
static inline real sum_of(const real *x, int64_t count)
{
    lanes sums = {0};
    for (int64_t i = 0; i < count; i += LNN_LANES)
        sums += CONST_AT(lanes, x + i);
    real sum = 0;
    for (int k = 0; k < LNN_LANES; k++)
        sum += sums[k];
    return sum;
}

static void liquid_scan(const lnn_scan_plan *plan, int64_t first)
{
    const lnn_scan *scan = plan->scan;
    const int64_t units = scan->units;
    const real *h = scan->start + first * units;
    for (int64_t t = scan->offset[first]; t < scan->offset[first + 1]; t++) {
        const real *rate = scan->driven + row_at(scan, t), *f = rate + units;
        real *restrict after = scan->states + t * units;
        const real width = scan->width[t];
        for (int64_t i = 0; i < units; i++)
            after[i] = h[i] + (f[i] - h[i]) * lnn_released(width * rate[i]);
        h = after;
    }
}

static void liquid_back(const lnn_scan_plan *plan, int64_t first)
{
    const lnn_scan *scan = plan->scan;
    const lnn_of_scan *of = plan->of;
    const int64_t units = scan->units, begin = scan->offset[first], end = scan->offset[first + 1];
    real *restrict p = of->start + first * units, *restrict terms = plan->terms;
    for (int64_t t = end; t-- > begin;) {
        const real *rate = scan->driven + row_at(scan, t), *f = rate + units;
        const real *h = t > begin ? scan->states + (t - 1) * units : scan->start + first * units;
        const real *of_end = coming_in(plan, t, end), width = scan->width[t];
        for (int64_t i = 0; of_end && i < units; i++)
            p[i] += of_end[i];
        real *restrict of_rate = of->driven + row_at(scan, t), *restrict of_f = of_rate + units;
        for (int64_t i = 0; i < units; i++) {
            const real released = lnn_released(width * rate[i]), adjoint = p[i];
            const real of_elapsed = adjoint * (f[i] - h[i]) * (1 - released);
            of_f[i] += adjoint * released;
            of_rate[i] += of_elapsed * width;
            terms[i] = of_elapsed * rate[i];
            p[i] = adjoint * (1 - released);
        }
        of->width[t] = sum_of(terms, lnn_padded(units));
    }
}

/* of_weight += the outer products of `count` rows into and before; rows beyond must be 0 */
static void add_outer(const lnn_scan_plan *plan)
{
    const int64_t width = plan->neural.lanes;
    for (int64_t i = 0; i < plan->scan->units; i++) {
        real into[LNN_OUTER];
        for (int k = 0; k < LNN_OUTER; k++)
            into[k] = plan->into[k * width + i];
        for (int64_t j = 0; j < width; j += LNN_LANES) {
            lanes sum = CONST_AT(lanes, plan->of_weight + i * width + j);
            for (int k = 0; k < LNN_OUTER; k++)
                sum += CONST_AT(lanes, plan->before + k * width + j) * into[k];
            AT(lanes, plan->of_weight + i * width + j) = sum;
        }
    }
}

static void neural_back(const lnn_scan_plan *plan, int64_t first)
{
    const lnn_scan *scan = plan->scan;
    const lnn_of_scan *of = plan->of;
    const int64_t units = scan->units, count = plan->neural.lanes;
    const int64_t begin = scan->offset[first], end = scan->offset[first + 1];
    const real *gain = plan->neural.gain, *reversal = plan->neural.reversal;
    const real *rate = plan->neural.rate;
    real *restrict driven = plan->driven, *current = driven + count, *restrict gate = plan->gate;
    real *restrict p = plan->adjoint, *restrict terms = plan->terms;
    real *restrict back = plan->state; /* what the gate hands back to the states before it */
    real *restrict of_gain = plan->of_gain, *restrict of_reversal = plan->of_reversal;
    real *restrict of_rate = plan->of_rate;
    /* sums of this sample alone: added up in two stages, long sums keep a digit more */
    memset(p, 0, (size_t)count * sizeof *p);
    memset(of_gain, 0, (size_t)count * sizeof *p);
    memset(of_reversal, 0, (size_t)count * sizeof *p);
    memset(of_rate, 0, (size_t)count * sizeof *p);
    memset(plan->of_weight, 0, (size_t)(units * count) * sizeof *p);
    int64_t pending = 0;
    for (int64_t t = end; t-- > begin; pending++) {
        if (pending == LNN_OUTER) {
            add_outer(plan);
            pending = 0;
        }
        const real *from = scan->driven + row_at(scan, t), width = scan->width[t];
        const real *state =
            t > begin ? scan->states + (t - 1) * units : scan->start + first * units;
        real *restrict h = plan->before + pending * count;
        real *restrict into = plan->into + pending * count;
        const size_t bytes = (size_t)units * sizeof(real);
        memcpy(driven, from, bytes);
        memcpy(current, from + units, bytes);
        memcpy(h, state, bytes);
        const real *of_end = coming_in(plan, t, end);
        for (int64_t i = 0; of_end && i < units; i++)
            p[i] += of_end[i];
        affine(&plan->neural.recurrent, driven, h, gate);
        for (int64_t i = 0; i < count; i++) {
            const real s = lnn_sigmoid(gate[i]), f = gain[i] * s, opening = 1 + f;
            const real equilibrium = (current[i] + f * reversal[i]) / opening;
            const real released = lnn_released(width * rate[i] * opening);
            const real of_elapsed = p[i] * (equilibrium - h[i]) * (1 - released);
            const real of_current = p[i] * released / opening;
            const real of_f = of_elapsed * width * rate[i] +
                              of_current * (reversal[i] - equilibrium);
            of_gain[i] += of_f * s;
            of_reversal[i] += of_current * f;
            of_rate[i] += of_elapsed * width * opening;
            terms[i] = of_elapsed * rate[i] * opening;
            into[i] = of_f * f * (1 - s);
            current[i] = of_current;
            p[i] *= 1 - released;
        }
        of->width[t] = sum_of(terms, count);
        real *restrict to = of->driven + row_at(scan, t);
        for (int64_t i = 0; i < units; i++) {
            to[i] += into[i];
            to[units + i] += current[i];
        }
        affine(&plan->transposed, p, into, back);
        memcpy(p, back, (size_t)count * sizeof *p);
    }
    memset(plan->into + pending * count, 0,
           (size_t)((LNN_OUTER - pending) * count) * sizeof(real));
    add_outer(plan);
    memcpy(of->start + first * units, p, (size_t)units * sizeof *p);
    for (int64_t i = 0; i < units; i++) {
        of->gain[i] += of_gain[i];
        of->reversal[i] += of_reversal[i];
        of->rate[i] += of_rate[i];
        for (int64_t j = 0; j < units; j++)
            of->weight[i * units + j] += plan->of_weight[i * count + j];
    }
}

/* Columns of a tile from rows, `count` numbers each; lanes without a row keep what they have. */
INLINE void load_column(real *tile, const real *row, int64_t count, int lane, const int wide)
{
    for (int64_t i = 0; i < count; i++)
        tile[i * wide + lane] = row[i];
}

/* Add the synapses into target i, whose sources are at x, to a conductance and a current; how far
 * each is open stays in `opened`. */
INLINE void conduct(const lnn_wired *wired, int64_t i, const real *x, real *g, real *current,
                    real *restrict opened, const int wide, const int is_tame)
{
    vector conductances[LNN_WIDE / VECTOR], currents[LNN_WIDE / VECTOR];
    for (int v = 0; v < wide / VECTOR; v++) {
        conductances[v] = CONST_AT(vector, g + v * VECTOR);
        currents[v] = CONST_AT(vector, current + v * VECTOR);
    }
    for (int64_t k = wired->begin[i]; k < wired->begin[i + 1]; k++, opened += wide) {
        const real *from = x + wired->source[k] * wide;
        const vector steep = (vector){0} + wired->steep[k], mu = (vector){0} + wired->mu[k];
        for (int v = 0; v < wide / VECTOR; v++) {
            const vector s = open_at(CONST_AT(vector, from + v * VECTOR), mu, steep, is_tame);
            AT(vector, opened + v * VECTOR) = s;
            conductances[v] += s * wired->w[k];
            currents[v] += s * wired->current[k];
        }
    }
    for (int v = 0; v < wide / VECTOR; v++) {
        AT(vector, g + v * VECTOR) = conductances[v];
        AT(vector, current + v * VECTOR) = currents[v];
    }
}

/* In each four lanes of a and b: the first of both and the second of both, or the third and the
 * fourth; the first two of both, or the last two. */
#define EACH_FOUR(of) of(0), of(4)
#define EACH_FOUR_OF_16(of) of(0), of(4), of(8), of(12)
#if LNN_STRIP == 16
#define MIX(a, b, of) SHUFFLE_STRIPS(a, b, EACH_FOUR_OF_16(of))
#else
#define MIX(a, b, of) SHUFFLE_STRIPS(a, b, EACH_FOUR(of))
#endif
#if defined(__clang__)
#define SHUFFLE_STRIPS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef lnn_bits strip_index __attribute__((vector_size(STRIP * sizeof(real))));
#define SHUFFLE_STRIPS(a, b, ...) __builtin_shuffle(a, b, (strip_index){__VA_ARGS__})
#endif
#define FIRST_TWO_IN_TURN(k) k, STRIP + k, k + 1, STRIP + k + 1
#define LAST_TWO_IN_TURN(k) k + 2, STRIP + k + 2, k + 3, STRIP + k + 3
#define FIRST_TWO(k) k, k + 1, STRIP + k, STRIP + k + 1
#define LAST_TWO(k) k + 2, k + 3, STRIP + k + 2, STRIP + k + 3

/* Add four vectors to LNN_LANES sums, in which they come in turn: as many sums as each has lanes
 * would no longer fit the processor's cache. */
INLINE void add_folded(real *sums, const strip *x)
{
    const strip early = MIX(x[0], x[1], FIRST_TWO_IN_TURN) + MIX(x[0], x[1], LAST_TWO_IN_TURN);
    const strip late = MIX(x[2], x[3], FIRST_TWO_IN_TURN) + MIX(x[2], x[3], LAST_TWO_IN_TURN);
    const strip all = MIX(early, late, FIRST_TWO) + MIX(early, late, LAST_TWO);
    lanes parts[STRIP / LNN_LANES], total = CONST_AT(lanes, sums);
    memcpy(parts, &all, sizeof all);
    for (int k = 0; k < STRIP / LNN_LANES; k++)
        total += parts[k];
    AT(lanes, sums) = total;
}

/* Back through `conduct`: of_x gets the sources' share, wired->sums that of the parameters. */
INLINE void conduct_back(const lnn_wired *wired, int64_t i, const real *x, const real *of_g,
                         const real *of_current, const real *opened, real *of_x, const int wide)
{
    strip of_g_at[LNN_WIDE / STRIP], of_current_at[LNN_WIDE / STRIP];
    for (int v = 0; v < wide / STRIP; v++) {
        of_g_at[v] = CONST_AT(strip, of_g + v * STRIP);
        of_current_at[v] = CONST_AT(strip, of_current + v * STRIP);
    }
    for (int64_t k = wired->begin[i]; k < wired->begin[i + 1]; k++, opened += wide) {
        const int64_t from = wired->source[k] * wide;
        strip sum[LNN_SUMS] = {{0}};
        const real w = wired->w[k], current = wired->current[k];
        const real sigma = wired->sigma[k], mu = wired->mu[k];
        for (int v = 0; v < wide / STRIP; v++) {
            const strip s = CONST_AT(strip, opened + v * STRIP);
            const strip z = (of_g_at[v] * w + of_current_at[v] * current) * (s - s * s);
            sum[LNN_CONDUCTED] += s * of_g_at[v];
            sum[LNN_DRIVEN] += s * of_current_at[v];
            sum[LNN_MOVED] += z;
            sum[LNN_TILTED] += z * (CONST_AT(strip, x + from + v * STRIP) - mu);
            AT(strip, of_x + from + v * STRIP) += z * sigma;
        }
        add_folded(wired->sums + k * LNN_LANES, sum);
    }
}

/* What a tile of the synaptic form walks through: its samples' sub-steps side by side. */
typedef struct {
    int64_t begin[LNN_WIDE], length[LNN_WIDE], at[LNN_WIDE]; /* at: the row in the tile, or -1 */
    int64_t longest;
} walk;

INLINE void set_out(walk *w, const lnn_scan *scan, int64_t first, int64_t count, const int wide)
{
    w->longest = 0;
    for (int l = 0; l < wide; l++) {
        w->begin[l] = l < count ? scan->offset[first + l] : 0;
        w->length[l] = l < count ? scan->offset[first + l + 1] - w->begin[l] : 0;
        w->longest = w->length[l] > w->longest ? w->length[l] : w->longest;
        w->at[l] = -1;
    }
}

INLINE void synaptic_scan_tile(const lnn_scan_plan *plan, int64_t first, int64_t count,
                               const int fused, const int wide)
{
    const lnn_scan *scan = plan->scan;
    const int64_t units = scan->units;
    real *h = plan->tiles, *after = h + units * wide, *driven = after + units * wide;
    real width[LNN_WIDE], g[LNN_WIDE], current[LNN_WIDE];
    walk w;
    set_out(&w, scan, first, count, wide);
    /* lanes without a sample do as if: any number is good that makes none that is not */
    for (int64_t i = 0; i < units * wide; i++)
        h[i] = driven[i] = driven[units * wide + i] = 1;
    for (int l = 0; l < count; l++)
        load_column(h, scan->start + (first + l) * units, units, l, wide);
    for (int64_t t = 0; t < w.longest; t++) {
        for (int l = 0; l < wide; l++) {
            width[l] = t < w.length[l] ? scan->width[w.begin[l] + t] : 0;
            const int64_t row = t < w.length[l] ? row_at(scan, w.begin[l] + t) : w.at[l];
            if (row != w.at[l])
                load_column(driven, scan->driven + row, 2 * units, l, wide);
            w.at[l] = row;
        }
        const int is_tame = all_within(h, units * wide, plan->wired.reach);
        for (int64_t i = 0; i < units; i++) {
            memcpy(g, driven + i * wide, sizeof g[0] * (size_t)wide);
            memcpy(current, driven + (units + i) * wide, sizeof g[0] * (size_t)wide);
            if (is_tame)
                conduct(&plan->wired, i, h, g, current, plan->opened, wide, 1);
            else
                conduct(&plan->wired, i, h, g, current, plan->opened, wide, 0);
            const real rate = scan->rate[i];
            const real *before = h + i * wide;
            real *restrict to = after + i * wide;
            for (int l = 0; l < wide; l++) {
                const real elapsed = width[l] * g[l] * rate;
                const real released = fused ? elapsed / (1 + elapsed) : lnn_released(elapsed);
                to[l] = before[l] + (current[l] / g[l] - before[l]) * released;
            }
        }
        for (int l = 0; l < count; l++)
            if (t < w.length[l])
                for (int64_t i = 0; i < units; i++)
                    scan->states[(w.begin[l] + t) * units + i] = after[i * wide + l];
        real *swapped = h;
        h = after;
        after = swapped;
    }
}

/* Add a column of a tile to its row of the gradient, and clear it. */
INLINE void put_column(real *tile, real *row, int64_t count, int lane, const int wide)
{
    for (int64_t i = 0; i < count; i++) {
        row[i] += tile[i * wide + lane];
        tile[i * wide + lane] = 0;
    }
}

INLINE void synaptic_back_tile(const lnn_scan_plan *plan, int64_t first, int64_t count,
                               const int fused, const int wide)
{
    const lnn_scan *scan = plan->scan;
    const lnn_of_scan *of = plan->of;
    const int64_t units = scan->units, size = units * wide;
    real *h = plan->tiles, *driven = h + size, *of_driven = driven + 2 * size;
    real *p = of_driven + 2 * size, *next = p + size;
    real width[LNN_WIDE], of_width[LNN_WIDE], g[LNN_WIDE], current[LNN_WIDE];
    real of_g[LNN_WIDE], of_current[LNN_WIDE];
    walk w;
    set_out(&w, scan, first, count, wide);
    for (int64_t i = 0; i < size; i++) {
        h[i] = driven[i] = driven[size + i] = 1;
        p[i] = of_driven[i] = of_driven[size + i] = 0;
    }
    for (int64_t t = w.longest; t-- > 0;) {
        for (int l = 0; l < wide; l++) {
            width[l] = of_width[l] = 0;
            if (t >= w.length[l])
                continue;
            const int64_t here = w.begin[l] + t, row = row_at(scan, here);
            width[l] = scan->width[here];
            if (row != w.at[l]) {
                if (w.at[l] >= 0)
                    put_column(of_driven, of->driven + w.at[l], 2 * units, l, wide);
                load_column(driven, scan->driven + row, 2 * units, l, wide);
                w.at[l] = row;
            }
            const real *state = t > 0 ? scan->states + (here - 1) * units
                                      : scan->start + (first + l) * units;
            load_column(h, state, units, l, wide);
            const real *of_end = coming_in(plan, here, w.begin[l] + w.length[l]);
            for (int64_t i = 0; of_end && i < units; i++)
                p[i * wide + l] += of_end[i];
        }
        memset(next, 0, sizeof *next * (size_t)size);
        const int is_tame = all_within(h, size, plan->wired.reach);
        for (int64_t i = 0; i < units; i++) {
            memcpy(g, driven + i * wide, sizeof g[0] * (size_t)wide);
            memcpy(current, driven + (units + i) * wide, sizeof g[0] * (size_t)wide);
            if (is_tame)
                conduct(&plan->wired, i, h, g, current, plan->opened, wide, 1);
            else
                conduct(&plan->wired, i, h, g, current, plan->opened, wide, 0);
            const real rate = scan->rate[i];
            const real *before = h + i * wide, *adjoint = p + i * wide;
            real *restrict to = next + i * wide, *restrict of_input = of_driven + i * wide;
            real *restrict of_rate = plan->of_rate + i * LNN_LANES;
            real of_rate_at[LNN_WIDE];
            for (int l = 0; l < wide; l++) {
                const real elapsed = width[l] * g[l] * rate, equilibrium = current[l] / g[l];
                const real released = fused ? elapsed / (1 + elapsed) : lnn_released(elapsed);
                const real kept = 1 - released;
                const real of_elapsed = adjoint[l] * (equilibrium - before[l]) *
                                        (fused ? kept * kept : kept);
                of_current[l] = adjoint[l] * released / g[l];
                of_g[l] = of_elapsed * width[l] * rate - of_current[l] * equilibrium;
                of_rate_at[l] = of_elapsed * width[l] * g[l];
                of_width[l] += of_elapsed * g[l] * rate;
                to[l] += adjoint[l] * kept;
                of_input[l] += of_g[l];
                of_input[size + l] += of_current[l];
            }
            for (int l = 0; l < wide; l += LNN_LANES)
                AT(lanes, of_rate) += CONST_AT(lanes, of_rate_at + l);
            conduct_back(&plan->wired, i, h, of_g, of_current, plan->opened, next, wide);
        }
        for (int l = 0; l < count; l++)
            if (t < w.length[l])
                of->width[w.begin[l] + t] = of_width[l];
        real *swapped = p;
        p = next;
        next = swapped;
    }
    for (int l = 0; l < count; l++) {
        if (w.at[l] >= 0)
            put_column(of_driven, of->driven + w.at[l], 2 * units, l, wide);
        put_column(p, of->start + (first + l) * units, units, l, wide);
    }
}

/* Constants for `fused` and `wide`, so that the loops over lanes become vectors. */
#define TILED(function)                                                                            \
    static void function(const lnn_scan_plan *plan, int64_t first, int64_t count)                  \
    {                                                                                              \
        const int fused = plan->scan->form == LNN_SYNAPTIC_FUSED;                                  \
        if (count > STRIP && fused)                                                                \
            function##_tile(plan, first, count, 1, LNN_WIDE);                                      \
        else if (count > STRIP)                                                                    \
            function##_tile(plan, first, count, 0, LNN_WIDE);                                      \
        else if (fused)                                                                            \
            function##_tile(plan, first, count, 1, STRIP);                                         \
        else                                                                                       \
            function##_tile(plan, first, count, 0, STRIP);                                         \
    }

TILED(synaptic_scan)
TILED(synaptic_back)

static void open_synapses(const lnn_wired *wired, int64_t count, const real *x, const real *base,
                          real *out, real *opened, real *tiles)
{
    const int64_t sources = wired->sources, targets = wired->targets;
    real g[LNN_WIDE], current[LNN_WIDE];
    memset(tiles, 0, sizeof *tiles * (size_t)(sources * LNN_WIDE));
    for (int l = 0; l < count; l++)
        load_column(tiles, x + l * sources, sources, l, LNN_WIDE);
    const int is_tame = all_within(tiles, sources * LNN_WIDE, wired->reach);
    for (int64_t i = 0; i < targets; i++) {
        for (int l = 0; l < LNN_WIDE; l++) {
            g[l] = base[i];
            current[l] = base[targets + i];
        }
        if (is_tame)
            conduct(wired, i, tiles, g, current, opened, LNN_WIDE, 1);
        else
            conduct(wired, i, tiles, g, current, opened, LNN_WIDE, 0);
        for (int l = 0; l < count; l++) {
            out[l * 2 * targets + i] = g[l];
            out[l * 2 * targets + targets + i] = current[l];
        }
    }
}

static void open_synapses_back(const lnn_wired *wired, int64_t count, const real *x,
                               const real *of_out, real *of_x, real *of_base, real *opened,
                               real *tiles)
{
    const int64_t sources = wired->sources, targets = wired->targets;
    real *x_tile = tiles, *of_x_tile = tiles + sources * LNN_WIDE;
    real of_g[LNN_WIDE], of_current[LNN_WIDE];
    real g[LNN_WIDE] = {0}, current[LNN_WIDE] = {0}; /* not needed again, nor worth a loop more */
    memset(tiles, 0, sizeof *tiles * (size_t)(2 * sources * LNN_WIDE));
    for (int l = 0; l < count; l++)
        load_column(x_tile, x + l * sources, sources, l, LNN_WIDE);
    const int is_tame = all_within(x_tile, sources * LNN_WIDE, wired->reach);
    for (int64_t i = 0; i < targets; i++) {
        for (int l = 0; l < LNN_WIDE; l++) {
            of_g[l] = l < count ? of_out[l * 2 * targets + i] : 0;
            of_current[l] = l < count ? of_out[l * 2 * targets + targets + i] : 0;
        }
        of_base[i] += sum_of(of_g, LNN_WIDE);
        of_base[targets + i] += sum_of(of_current, LNN_WIDE);
        if (is_tame)
            conduct(wired, i, x_tile, g, current, opened, LNN_WIDE, 1);
        else
            conduct(wired, i, x_tile, g, current, opened, LNN_WIDE, 0);
        conduct_back(wired, i, x_tile, of_g, of_current, opened, of_x_tile, LNN_WIDE);
    }
    for (int l = 0; l < count; l++)
        for (int64_t j = 0; j < sources; j++)
            of_x[l * sources + j] = of_x_tile[j * LNN_WIDE + l];
}
