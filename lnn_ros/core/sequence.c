/* Whole sequences of sub-steps, forward and back, for training; see core.h. */
#include "kernels.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define LNN_GUARD 64 /* bytes that must not be touched, after each array */
void __asan_poison_memory_region(const volatile void *, size_t);
#else
#define LNN_GUARD 0
#endif

/* Memory handed out front to back; without a base it only counts. */
typedef struct {
    char *base;
    size_t used;
} stock;

static void *hand_out(stock *from, int64_t count, size_t each)
{
    const size_t bytes = (size_t)count * each, whole = (bytes + 63) / 64 * 64;
    char *here = from->base ? from->base + from->used : NULL;
#if LNN_GUARD
    if (here)
        __asan_poison_memory_region(here + bytes, whole - bytes + LNN_GUARD);
#endif
    from->used += whole + LNN_GUARD;
    return here;
}

static real *reals(stock *from, int64_t count)
{
    return hand_out(from, count, sizeof(real));
}

static void place_wired(lnn_wired *wired, const lnn_synapses *synapses, stock *from)
{
    const int64_t count = synapses->count;
    wired->targets = synapses->targets;
    wired->sources = synapses->sources;
    wired->begin = hand_out(from, synapses->targets + 2, sizeof(int64_t));
    wired->source = hand_out(from, count, sizeof(int64_t));
    wired->steep = reals(from, count);
    wired->sigma = reals(from, count);
    wired->mu = reals(from, count);
    wired->w = reals(from, count);
    wired->current = reals(from, count);
    wired->sums = reals(from, count * LNN_LANES);
}

/* Add up the sums, in the order in which lnn_wire sorted; uses up `begin`. */
static void give_back(const lnn_wired *wired, const lnn_synapses *synapses,
                      const lnn_of_synapses *of)
{
    int64_t *next = wired->begin;
    for (int64_t k = 0; k < synapses->count; k++) {
        const real *sums = wired->sums + next[synapses->target[k]]++ * LNN_LANES;
        real sum[LNN_SUMS] = {0};
        for (int l = 0; l < LNN_LANES; l++)
            sum[l % LNN_SUMS] += sums[l];
        of->w[k] = sum[LNN_CONDUCTED] + synapses->erev[k] * sum[LNN_DRIVEN];
        of->erev[k] = synapses->w[k] * sum[LNN_DRIVEN];
        of->sigma[k] = sum[LNN_TILTED];
        of->mu[k] = -synapses->sigma[k] * sum[LNN_MOVED];
    }
}

/* Pack (units, units) weights for the inner loops, as they are or transposed. */
static void pack(lnn_map *map, const real *weight, int64_t units, int64_t down, int64_t across)
{
    memset(map->weight, 0, sizeof *weight * (size_t)(map->outputs * map->inputs));
    for (int64_t i = 0; i < units; i++)
        for (int64_t j = 0; j < units; j++)
            map->weight[lnn_weight_at(i, j, map->outputs, map->inputs)] =
                weight[i * down + j * across];
}

static real *padded(stock *from, const real *values, int64_t units)
{
    real *out = reals(from, lnn_padded(units));
    if (out) {
        memset(out, 0, sizeof *out * (size_t)lnn_padded(units));
        memcpy(out, values, sizeof *out * (size_t)units);
    }
    return out;
}

static size_t place(lnn_scan_plan *plan, const lnn_scan *scan, void *memory)
{
    stock from = {memory, 0};
    const int64_t units = scan->units, count = lnn_padded(units);
    memset(plan, 0, sizeof *plan);
    plan->scan = scan;
    plan->terms = reals(&from, count);
    if (scan->form == LNN_NEURAL) {
        const lnn_map map = {units, count, reals(&from, count * units), NULL};
        plan->neural.lanes = count;
        plan->neural.recurrent = plan->transposed = map;
        plan->transposed.weight = reals(&from, count * units);
        plan->transposed.bias = NULL;
        plan->neural.gain = padded(&from, scan->gain, units);
        plan->neural.reversal = padded(&from, scan->reversal, units);
        plan->neural.rate = padded(&from, scan->rate, units);
        plan->of_weight = reals(&from, units * count);
        plan->of_gain = reals(&from, count);
        plan->of_reversal = reals(&from, count);
        plan->of_rate = reals(&from, count);
        plan->driven = reals(&from, 2 * count);
        plan->gate = reals(&from, count);
        plan->state = reals(&from, count);
        plan->adjoint = reals(&from, count);
        plan->into = reals(&from, LNN_OUTER * count);
        plan->before = reals(&from, LNN_OUTER * count);
    } else if (scan->form != LNN_LIQUID) {
        place_wired(&plan->wired, &scan->synapses, &from);
        plan->of_rate = reals(&from, units * LNN_LANES);
        plan->opened = reals(&from, scan->synapses.count * LNN_WIDE);
        plan->tiles = reals(&from, 7 * units * LNN_WIDE);
    }
    return from.used;
}

size_t lnn_scan_memory(const lnn_scan *scan)
{
    lnn_scan_plan plan;
    return place(&plan, scan, NULL);
}

/* Lay out what both ways need. */
static void prepare(lnn_scan_plan *plan, const lnn_scan *scan, void *memory)
{
    place(plan, scan, memory);
    const int64_t units = scan->units;
    if (scan->form == LNN_NEURAL) {
        pack(&plan->neural.recurrent, scan->weight, units, units, 1);
        memset(plan->driven, 0, sizeof *plan->driven * (size_t)(2 * plan->neural.lanes));
        memset(plan->state, 0, sizeof *plan->state * (size_t)plan->neural.lanes);
    } else if (scan->form != LNN_LIQUID) {
        lnn_wire(&plan->wired, &scan->synapses);
    }
}

static void neural_forward(const lnn_scan_plan *plan, const lnn_kernels *kernels, int64_t sample)
{
    const lnn_scan *scan = plan->scan;
    const int64_t units = scan->units;
    const size_t bytes = (size_t)units * sizeof(real);
    memcpy(plan->state, scan->start + sample * units, bytes);
    for (int64_t t = scan->offset[sample]; t < scan->offset[sample + 1]; t++) {
        const int64_t row = scan->interval && scan->is_held ? scan->interval[t] : t;
        const real *from = scan->driven + row * 2 * units;
        memcpy(plan->driven, from, bytes);
        memcpy(plan->driven + plan->neural.lanes, from + units, bytes);
        kernels->neural_ltc(&plan->neural, plan->driven, plan->driven, plan->state, plan->gate, 1,
                            scan->width[t]);
        memcpy(scan->states + t * units, plan->state, bytes);
    }
}

void lnn_scan_forward(const lnn_scan *scan, const lnn_kernels *kernels, void *memory)
{
    lnn_scan_plan plan;
    prepare(&plan, scan, memory);
    const int is_wired = scan->form == LNN_SYNAPTIC || scan->form == LNN_SYNAPTIC_FUSED;
    for (int64_t b = 0, count = 1; b < scan->batch; b += count) {
        if (scan->form == LNN_LIQUID)
            kernels->liquid_scan(&plan, b);
        else if (scan->form == LNN_NEURAL)
            neural_forward(&plan, kernels, b);
        if (!is_wired)
            continue;
        count = scan->batch - b < LNN_WIDE ? scan->batch - b : LNN_WIDE;
        kernels->synaptic_scan(&plan, b, count);
    }
}

static void clear(real *values, int64_t count)
{
    memset(values, 0, sizeof *values * (size_t)count);
}

void lnn_scan_back(const lnn_scan *scan, const lnn_of_scan *of, const lnn_kernels *kernels,
                   void *memory)
{
    lnn_scan_plan plan;
    prepare(&plan, scan, memory);
    plan.of = of;
    const int64_t units = scan->units, lanes = lnn_padded(units);
    clear(of->driven, scan->rows * 2 * units);
    clear(of->start, scan->batch * units);
    clear(plan.terms, lanes);
    if (scan->form == LNN_LIQUID) {
        for (int64_t b = 0; b < scan->batch; b++)
            kernels->liquid_back(&plan, b);
    } else if (scan->form == LNN_NEURAL) {
        pack(&plan.transposed, scan->weight, units, 1, units);
        clear(plan.before, LNN_OUTER * lanes);
        clear(of->weight, units * units);
        clear(of->gain, units);
        clear(of->reversal, units);
        clear(of->rate, units);
        for (int64_t b = 0; b < scan->batch; b++)
            kernels->neural_back(&plan, b);
    } else {
        clear(plan.wired.sums, scan->synapses.count * LNN_LANES);
        clear(plan.of_rate, units * LNN_LANES);
        for (int64_t b = 0; b < scan->batch; b += LNN_WIDE)
            kernels->synaptic_back(&plan, b,
                                   scan->batch - b < LNN_WIDE ? scan->batch - b : LNN_WIDE);
        for (int64_t i = 0; i < units; i++) {
            of->rate[i] = 0;
            for (int l = 0; l < LNN_LANES; l++)
                of->rate[i] += plan.of_rate[i * LNN_LANES + l];
        }
        give_back(&plan.wired, &scan->synapses, &of->synapses);
    }
}

typedef struct {
    lnn_wired wired;
    real *opened, *tiles;
} opening;

static size_t place_opening(opening *plan, const lnn_synapses *synapses, void *memory)
{
    stock from = {memory, 0};
    place_wired(&plan->wired, synapses, &from);
    plan->opened = reals(&from, synapses->count * LNN_WIDE);
    plan->tiles = reals(&from, 2 * synapses->sources * LNN_WIDE);
    return from.used;
}

size_t lnn_synapses_memory(const lnn_synapses *synapses)
{
    opening plan;
    return place_opening(&plan, synapses, NULL);
}

void lnn_open(const lnn_synapses *synapses, const lnn_kernels *kernels, int64_t rows, const real *x,
              const real *base, real *out, void *memory)
{
    opening plan;
    place_opening(&plan, synapses, memory);
    lnn_wire(&plan.wired, synapses);
    for (int64_t r = 0; r < rows; r += LNN_WIDE)
        kernels->open(&plan.wired, rows - r < LNN_WIDE ? rows - r : LNN_WIDE,
                      x + r * synapses->sources, base, out + r * 2 * synapses->targets,
                      plan.opened, plan.tiles);
}

void lnn_open_back(const lnn_synapses *synapses, const lnn_of_synapses *of,
                   const lnn_kernels *kernels, int64_t rows, const real *x, const real *of_out,
                   real *of_x, real *of_base, void *memory)
{
    opening plan;
    place_opening(&plan, synapses, memory);
    lnn_wire(&plan.wired, synapses);
    clear(plan.wired.sums, synapses->count * LNN_LANES);
    clear(of_base, 2 * synapses->targets);
    for (int64_t r = 0; r < rows; r += LNN_WIDE)
        kernels->open_back(&plan.wired, rows - r < LNN_WIDE ? rows - r : LNN_WIDE,
                           x + r * synapses->sources, of_out + r * 2 * synapses->targets,
                           of_x + r * synapses->sources, of_base, plan.opened, plan.tiles);
    give_back(&plan.wired, synapses, of);
}
