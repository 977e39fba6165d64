/* A policy laid out in one piece of memory, and its step; see core.h. */
#include "kernels.h"

#include <math.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define LNN_GUARD 64 /* bytes that must not be touched, after each array */
void __asan_poison_memory_region(const volatile void *, size_t);
#else
#define LNN_GUARD 0
#endif

enum { MOST_LAYERS = 16, MOST_SIDE = 1 << 16 };
static const size_t MOST_BYTES = (size_t)1 << 30;
static const double MOST_SUB_STEPS = 1e6;

struct lnn_engine {
    const lnn_kernels *kernels;
    int64_t units, lanes, features, imu, convolutions, mappings, readouts, channels, height, width;
    int64_t hold, unfolds, motors;
    lnn_form form;
    double max_step, age_scale;
    lnn_convolution_plan convolution[MOST_LAYERS];
    real *plane[MOST_LAYERS + 1];  /* each layer's padded input; at the end what is flattened */
    real *inside[MOST_LAYERS + 1]; /* where in it the layer before writes */
    int64_t image_row, image_plane; /* reals from one row, one channel to the next in plane[0] */
    lnn_map map_features;
    real *encoded; /* padded, as the inputs are not */
    lnn_map mapping[MOST_LAYERS];
    real *mapped[MOST_LAYERS];
    lnn_map of_input; /* of the neural form */
    lnn_neural_ltc_plan neural;
    lnn_synaptic_plan synaptic;
    lnn_liquid_plan liquid;
    real *input_w, *input_b, *output_w, *output_b; /* of the synaptic form */
    real *state;
    real *joint, *inputs; /* [what is read of the state; inputs]: what the readout sees */
    /* what the inputs drive in the cell: at the start of the interval that is to come, and room for
     * that at its end; changed: the inputs are no longer those of its start */
    real *driven, *driven_next;
    int changed, has_start;
    int64_t driven_size;
    real *work;
    lnn_map readout[MOST_LAYERS];
    real *hidden[MOST_LAYERS];
    int64_t outputs;
    real *middle, *half;
};

/* Memory handed out front to back; without a base it only counts. */
typedef struct {
    char *base;
    size_t used;
    int too_much;
} arena;

static real *take(arena *from, int64_t count)
{
    if (count < 0 || (uint64_t)count > MOST_BYTES / sizeof(real)) {
        from->too_much = 1;
        return NULL;
    }
    const size_t bytes = ((size_t)count * sizeof(real) + 63) / 64 * 64;
    real *here = from->base ? (real *)(from->base + from->used) : NULL;
#if LNN_GUARD
    if (from->base)
        __asan_poison_memory_region((char *)here + (size_t)count * sizeof(real),
                                    bytes - (size_t)count * sizeof(real) + LNN_GUARD);
#endif
    from->used += bytes + LNN_GUARD;
    from->too_much |= from->used > MOST_BYTES;
    return here;
}

static lnn_map take_map(arena *from, int64_t inputs, int64_t outputs)
{
    lnn_map map = {inputs, lnn_padded(outputs), NULL, NULL};
    map.weight = take(from, map.inputs * map.outputs);
    map.bias = take(from, map.outputs);
    return map;
}

static int64_t *take_indices(arena *from, int64_t count)
{
    return (int64_t *)take(from, count * (int64_t)(sizeof(int64_t) / sizeof(real)));
}

static int in_range(int64_t value, int64_t low, int64_t high)
{
    return low <= value && value <= high;
}

/* Returns 0 when a size makes no sense; all products of two sides fit an int64. */
static int lay_out_encoder(lnn_engine *e, arena *from, const lnn_policy *policy)
{
    int64_t channels = policy->channels, height = policy->height, width = policy->width;
    if (!in_range(channels, 1, MOST_SIDE) || !in_range(height, 1, MOST_SIDE) ||
        !in_range(width, 1, MOST_SIDE) || !in_range(policy->features.outputs, 1, MOST_SIDE))
        return 0;
    for (int64_t i = 0; i <= policy->convolutions; i++) {
        const lnn_convolution *layer = i < policy->convolutions ? &policy->convolution[i] : NULL;
        const int64_t padding = layer ? layer->padding : 0;
        if (layer && (!in_range(layer->channels, 1, MOST_SIDE) || !in_range(layer->kernel, 1, 255) ||
                      !in_range(layer->stride, 1, 255) || !in_range(padding, 0, 254)))
            return 0;
        /* the image keeps its channels apart; after a convolution they stand together */
        const int64_t pixel = i > 0 ? channels : 1, planes = i > 0 ? 1 : channels;
        const int64_t row = (width + 2 * padding) * pixel, plane = row * (height + 2 * padding);
        if (plane > (int64_t)(MOST_BYTES / sizeof(real)) / planes)
            return 0;
        e->plane[i] = take(from, plane * planes);
        e->inside[i] = e->plane[i] ? e->plane[i] + padding * (row + pixel) : NULL;
        if (i > 0) {
            e->convolution[i - 1].out_row = row;
        } else {
            e->image_row = row;
            e->image_plane = plane;
        }
        if (!layer)
            break;
        if (height + 2 * padding < layer->kernel || width + 2 * padding < layer->kernel)
            return 0;
        lnn_convolution_plan *plan = &e->convolution[i];
        plan->channels = layer->channels;
        height = plan->rows = (height + 2 * padding - layer->kernel) / layer->stride + 1;
        width = plan->columns = (width + 2 * padding - layer->kernel) / layer->stride + 1;
        plan->taps = channels * layer->kernel * layer->kernel;
        plan->pixel = layer->stride * pixel;
        plan->row = layer->stride * row;
        plan->overlaps = layer->kernel == 3 && layer->stride == 2;
        const int64_t offsets = plan->taps * (int64_t)(sizeof(int64_t) / sizeof(real));
        plan->offset = (int64_t *)take(from, offsets);
        const int64_t panels = (layer->channels + LNN_PANEL - 1) / LNN_PANEL * LNN_PANEL;
        plan->weight = take(from, plan->taps * panels);
        plan->bias = take(from, panels);
        channels = layer->channels;
    }
    /* checked above: channels * height * width is at most MOST_BYTES / sizeof(real) */
    e->map_features = take_map(from, channels * height * width, policy->features.outputs);
    e->encoded = take(from, e->map_features.outputs);
    e->features = policy->features.outputs;
    e->channels = policy->channels;
    e->height = policy->height;
    e->width = policy->width;
    return 1;
}

static int lay_out_synapses(lnn_bundle *bundle, arena *from, int64_t count, int64_t sources,
                            int64_t targets)
{
    if (!in_range(count, 0, sources * targets))
        return 0;
    const int64_t groups = lnn_groups(targets), slots = lnn_most_slots(count, sources, groups);
    bundle->sources = sources;
    bundle->groups = groups;
    bundle->begin = take_indices(from, groups + 1);
    bundle->is_shared = take_indices(from, groups);
    bundle->source = (lnn_place *)take(from, slots * LNN_GROUP);
    bundle->numbers = take(from, slots * LNN_NUMBERS * LNN_GROUP);
    bundle->degree = take_indices(from, groups * LNN_GROUP);
    bundle->slot = take_indices(from, groups * sources);
    return 1;
}

/* `seen`: inputs of the cell. */
static int lay_out_cell(lnn_engine *e, arena *from, const lnn_policy *policy, int64_t seen)
{
    const int64_t lanes = e->lanes;
    int64_t work = 3 * lanes;
    if (e->form == LNN_NEURAL) {
        e->driven_size = 2 * lanes;
        e->of_input = take_map(from, seen, e->driven_size);
        e->neural.lanes = lanes;
        e->neural.recurrent = take_map(from, e->units, lanes);
        e->neural.gain = take(from, lanes);
        e->neural.reversal = take(from, lanes);
        e->neural.rate = take(from, lanes);
    } else {
        e->driven_size = lnn_padded(seen);
        work = 4 * lanes + e->driven_size;
    }
    if (e->form == LNN_SYNAPTIC || e->form == LNN_SYNAPTIC_FUSED) {
        const lnn_synaptic_ltc *cell = &policy->synaptic;
        lnn_synaptic_plan *plan = &e->synaptic;
        plan->lanes = lanes;
        plan->seen = seen;
        plan->is_fused = e->form == LNN_SYNAPTIC_FUSED;
        if (!lay_out_synapses(&plan->sensory, from, cell->sensory.count, seen, e->units) ||
            !lay_out_synapses(&plan->synapses, from, cell->synapses.count, e->units, e->units))
            return 0;
        plan->gl = take(from, lanes);
        plan->leak = take(from, lanes);
        plan->cm = take(from, lanes);
        e->input_w = take(from, seen);
        e->input_b = take(from, seen);
        e->output_w = take(from, e->motors);
        e->output_b = take(from, e->motors);
    } else if (e->form == LNN_LIQUID) {
        e->liquid.lanes = lanes;
        e->liquid.seen = seen;
        e->liquid.tau = take_map(from, seen, e->units);
        e->liquid.hidden = take_map(from, seen, 2 * e->units);
        e->liquid.out = take_map(from, 2 * e->units, e->units);
    }
    e->state = take(from, lanes);
    e->driven = take(from, e->driven_size);
    e->driven_next = take(from, e->driven_size);
    e->work = take(from, work);
    return 1;
}

static int lay_out(lnn_engine *e, arena *from, const lnn_policy *policy)
{
    if (!in_range(policy->form, 0, LNN_FORMS - 1) || !in_range(policy->units, 1, MOST_SIDE) ||
        !in_range(policy->motors, 1, policy->units) || !in_range(policy->imu, 0, MOST_SIDE) ||
        !in_range(policy->unfolds, 1, (int64_t)MOST_SUB_STEPS) ||
        !in_range(policy->convolutions, 0, MOST_LAYERS) ||
        !in_range(policy->mappings, 0, MOST_LAYERS) ||
        !in_range(policy->readouts, 1, MOST_LAYERS) ||
        !in_range(policy->hold, LNN_HOLD_CURRENT, LNN_HOLD_LINEAR) ||
        !(policy->max_step > 0 && isfinite(policy->max_step)) ||
        !(policy->age_scale > 0 && isfinite(policy->age_scale)))
        return 0;
    e->convolutions = policy->channels ? policy->convolutions : 0;
    if (policy->channels != 0 && !lay_out_encoder(e, from, policy))
        return 0;
    e->form = policy->form;
    e->units = policy->units;
    e->motors = policy->motors;
    e->unfolds = policy->unfolds;
    e->lanes = e->form == LNN_SYNAPTIC || e->form == LNN_SYNAPTIC_FUSED
                   ? lnn_groups(e->units) * LNN_GROUP
                   : lnn_padded(e->units);
    e->imu = policy->imu;
    e->max_step = policy->max_step;
    e->age_scale = policy->age_scale;
    const int64_t inputs = (e->features ? e->features + 1 : 0) + e->imu;
    if (inputs < 1)
        return 0;
    e->hold = policy->hold;
    e->mappings = policy->mappings;
    int64_t before = inputs;
    for (int64_t i = 0; i < e->mappings; i++) {
        const int64_t outputs = policy->mapping[i].outputs;
        if (!in_range(outputs, 1, MOST_SIDE))
            return 0;
        e->mapping[i] = take_map(from, before, outputs);
        e->mapped[i] = take(from, e->mapping[i].outputs);
        before = outputs;
    }
    if (!lay_out_cell(e, from, policy, before))
        return 0;
    e->joint = take(from, e->motors + inputs);
    e->inputs = e->joint ? e->joint + e->motors : NULL;
    before = e->motors + inputs;
    e->readouts = policy->readouts;
    for (int64_t i = 0; i < e->readouts; i++) {
        const int64_t outputs = policy->readout[i].outputs;
        if (!in_range(outputs, 1, MOST_SIDE))
            return 0;
        e->readout[i] = take_map(from, before, outputs);
        e->hidden[i] = take(from, e->readout[i].outputs);
        before = e->outputs = outputs;
    }
    e->middle = take(from, e->outputs);
    e->half = take(from, e->outputs);
    return !from->too_much;
}

size_t lnn_engine_size(const lnn_policy *policy)
{
    lnn_engine only_counted;
    memset(&only_counted, 0, sizeof only_counted);
    arena memory = {NULL, (sizeof(lnn_engine) + 63) / 64 * 64, 0};
    return lay_out(&only_counted, &memory, policy) ? memory.used : 0;
}

/* weight (outputs, inputs) into map's rows from `row` and columns from `column` on */
static void pack(lnn_map *map, const real *weight, int64_t outputs, int64_t inputs, int64_t row,
                 int64_t column)
{
    for (int64_t i = 0; i < outputs; i++)
        for (int64_t j = 0; j < inputs; j++)
            map->weight[lnn_weight_at(row + i, column + j, map->outputs, map->inputs)] =
                weight[i * inputs + j];
}

static void pack_convolution(lnn_convolution_plan *plan, const lnn_convolution *layer,
                             int64_t channel)
{
    const int64_t k = layer->kernel, pixel = plan->pixel / layer->stride;
    const int64_t row = plan->row / layer->stride;
    for (int64_t t = 0; t < plan->taps; t++)
        plan->offset[t] = t / (k * k) * channel + t / k % k * row + t % k * pixel;
    for (int64_t i = 0; i < plan->channels; i++) {
        plan->bias[i] = layer->bias[i];
        real *panel = plan->weight + i / LNN_PANEL * LNN_PANEL * plan->taps + i % LNN_PANEL;
        for (int64_t t = 0; t < plan->taps; t++)
            panel[t * LNN_PANEL] = layer->weight[i * plan->taps + t];
    }
}

static void pack_features(lnn_engine *e, const lnn_linear *features)
{
    int64_t channels = 1, area = e->map_features.inputs; /* the image's planes stay as they are */
    if (e->convolutions) {
        const lnn_convolution_plan *last = &e->convolution[e->convolutions - 1];
        channels = last->channels;
        area = last->rows * last->columns;
    }
    lnn_map *map = &e->map_features;
    for (int64_t i = 0; i < e->features; i++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t k = 0; k < area; k++)
                map->weight[lnn_weight_at(i, k * channels + c, map->outputs, map->inputs)] =
                    features->weight[(i * channels + c) * area + k];
    memcpy(map->bias, features->bias, (size_t)e->features * sizeof(real));
}

static void pack_linear(lnn_map *map, const real *weight, const real *bias, int64_t outputs)
{
    pack(map, weight, outputs, map->inputs, 0, 0);
    memcpy(map->bias, bias, (size_t)outputs * sizeof(real));
}

static int pack_cell(lnn_engine *e, const lnn_policy *policy)
{
    const size_t units = (size_t)e->units * sizeof(real);
    if (e->form == LNN_NEURAL) {
        const lnn_neural_ltc *cell = &policy->neural;
        const int64_t seen = e->of_input.inputs;
        pack(&e->of_input, cell->gate_input, e->units, seen, 0, 0);
        pack(&e->of_input, cell->drive, e->units, seen, e->lanes, 0);
        memcpy(e->of_input.bias, cell->gate_bias, units);
        memcpy(e->of_input.bias + e->lanes, cell->leak, units);
        pack(&e->neural.recurrent, cell->gate_recurrent, e->units, e->units, 0, 0);
        memcpy(e->neural.gain, cell->gain, units);
        memcpy(e->neural.reversal, cell->reversal, units);
        memcpy(e->neural.rate, cell->rate, units);
    } else if (e->form == LNN_LIQUID) {
        const lnn_liquid_cell *cell = &policy->liquid;
        pack_linear(&e->liquid.tau, cell->tau_weight, cell->tau_bias, e->units);
        pack_linear(&e->liquid.hidden, cell->hidden_weight, cell->hidden_bias, 2 * e->units);
        pack_linear(&e->liquid.out, cell->out_weight, cell->out_bias, e->units);
    } else {
        const lnn_synaptic_ltc *cell = &policy->synaptic;
        const size_t seen = (size_t)e->synaptic.seen * sizeof(real);
        if (!lnn_bundle_up(&e->synaptic.sensory, &cell->sensory) ||
            !lnn_bundle_up(&e->synaptic.synapses, &cell->synapses))
            return 0;
        for (int64_t i = e->units; i < e->lanes; i++) /* no 0 / 0 in lanes that are not used */
            e->synaptic.gl[i] = e->synaptic.cm[i] = 1;
        memcpy(e->synaptic.gl, cell->gl, units);
        for (int64_t i = 0; i < e->units; i++)
            e->synaptic.leak[i] = cell->gl[i] * cell->vl[i];
        memcpy(e->synaptic.cm, cell->cm, units);
        memcpy(e->input_w, cell->input_w, seen);
        memcpy(e->input_b, cell->input_b, seen);
        memcpy(e->output_w, cell->output_w, (size_t)e->motors * sizeof(real));
        memcpy(e->output_b, cell->output_b, (size_t)e->motors * sizeof(real));
    }
    return 1;
}

lnn_engine *lnn_engine_place(void *memory, const lnn_policy *policy, const lnn_kernels *kernels)
{
    lnn_engine *e = memory;
    arena rest = {memory, (sizeof *e + 63) / 64 * 64, 0};
    if (!lay_out(e, &rest, policy))
        return NULL;
    e->kernels = kernels;
    for (int64_t i = 0; i < e->convolutions; i++)
        pack_convolution(&e->convolution[i], &policy->convolution[i], i > 0 ? 1 : e->image_plane);
    if (e->features)
        pack_features(e, &policy->features);
    for (int64_t i = 0; i < e->mappings; i++) {
        const lnn_linear *layer = &policy->mapping[i];
        pack_linear(&e->mapping[i], layer->weight, layer->bias, layer->outputs);
    }
    if (!pack_cell(e, policy))
        return NULL;
    for (int64_t i = 0; i < e->readouts; i++) {
        const lnn_linear *layer = &policy->readout[i];
        pack_linear(&e->readout[i], layer->weight, layer->bias, layer->outputs);
    }
    memcpy(e->middle, policy->middle, (size_t)e->outputs * sizeof(real));
    memcpy(e->half, policy->half, (size_t)e->outputs * sizeof(real));
    e->changed = 1;
    return e;
}

real *lnn_engine_state(lnn_engine *e)
{
    return e->state;
}

real *lnn_engine_outputs(lnn_engine *e)
{
    return e->hidden[e->readouts - 1];
}

static int all_finite(const real *x, int64_t count)
{
    int bad = 0;
    for (int64_t i = 0; i < count; i++)
        bad |= x[i] - x[i] != 0; /* NaN and infinities */
    return !bad;
}

int lnn_hold_image(lnn_engine *e, const real *pixels)
{
    if (!e->features)
        return 0;
    int good = 1; /* of an image that is refused only what is overwritten here is left */
    for (int64_t c = 0; c < e->channels; c++) {
        real *to = e->inside[0] + c * e->image_plane;
        for (int64_t y = 0; y < e->height; y++, pixels += e->width, to += e->image_row)
            good &= e->kernels->copy_finite(e->width, pixels, to);
    }
    if (!good)
        return 0;
    for (int64_t i = 0; i < e->convolutions; i++)
        e->kernels->convolve(&e->convolution[i], e->plane[i], e->inside[i + 1]);
    const lnn_map *map = &e->map_features;
    e->kernels->affine(map, map->bias, e->plane[e->convolutions], e->encoded);
    e->kernels->elementwise(LNN_TANH, map->outputs, e->encoded, e->encoded);
    memcpy(e->inputs, e->encoded, (size_t)e->features * sizeof(real));
    e->changed = 1;
    return 1;
}

int lnn_hold_imu(lnn_engine *e, const real *values)
{
    if (!all_finite(values, e->imu))
        return 0;
    memcpy(e->inputs + (e->features ? e->features + 1 : 0), values, (size_t)e->imu * sizeof(real));
    e->changed = 1;
    return 1;
}

int lnn_hold_age(lnn_engine *e, double age)
{
    const real scaled = (real)(age / e->age_scale);
    if (!e->features || !isfinite(scaled))
        return 0;
    e->inputs[e->features] = scaled;
    e->changed = 1;
    return 1;
}

void lnn_reset(lnn_engine *e)
{
    memset(e->state, 0, (size_t)e->lanes * sizeof(real));
    e->has_start = 0;
}

/* Returns what the held inputs drive, in driven_next if they have changed. */
static const real *drive(lnn_engine *e)
{
    if (!e->changed)
        return e->driven;
    const real *x = e->inputs;
    for (int64_t i = 0; i < e->mappings; i++) {
        real *out = e->mapped[i];
        e->kernels->affine(&e->mapping[i], e->mapping[i].bias, x, out);
        if (i + 1 < e->mappings)
            e->kernels->elementwise(LNN_SILU, e->mapping[i].outputs, out, out);
        x = out;
    }
    if (e->form == LNN_NEURAL)
        e->kernels->affine(&e->of_input, e->of_input.bias, x, e->driven_next);
    else if (e->form == LNN_LIQUID)
        memcpy(e->driven_next, x, (size_t)e->liquid.seen * sizeof(real));
    else
        for (int64_t i = 0; i < e->synaptic.seen; i++) {
            /* an infinite one times the slope 0 of a synapse that is not there would be a NaN */
            const real value = e->input_w[i] * x[i] + e->input_b[i], most = (real)1e30;
            const real above = value < -most ? -most : value;
            e->driven_next[i] = above > most ? most : above;
        }
    return e->driven_next;
}

/* After drive(): the next interval starts with what it found. */
static void settle(lnn_engine *e)
{
    if (e->changed) {
        real *driven = e->driven_next;
        e->driven_next = e->driven;
        e->driven = driven;
    }
    e->changed = 0;
    e->has_start = 1;
}

void lnn_jump(lnn_engine *e)
{
    drive(e);
    settle(e);
}

/* Returns 0 when an interval is none, or has too many. */
static int64_t sub_steps(const lnn_engine *e, double dt)
{
    /* as numpy_engine.sub_steps: the margin keeps a whole number of steps at that number */
    const double count = ceil(dt / e->max_step * (1.0 - 1e-6));
    if (!(dt > 0 && count <= MOST_SUB_STEPS)) /* false for a NaN, too */
        return 0;
    return count < (double)e->unfolds ? e->unfolds : (int64_t)count;
}

double lnn_advance_work(const lnn_engine *e, double dt)
{
    enum { OF_SYNAPSE = 20 };
    int64_t once = 0, each = e->lanes;
    for (int64_t i = 0; i < e->mappings; i++)
        once += e->mapping[i].inputs * e->mapping[i].outputs;
    if (e->form == LNN_NEURAL) {
        once += e->of_input.inputs * e->of_input.outputs;
        each += e->units * e->lanes;
    } else if (e->form == LNN_LIQUID) {
        each += 3 * e->lanes * e->liquid.seen + 2 * e->lanes * e->lanes;
    } else {
        const lnn_bundle *sensory = &e->synaptic.sensory, *synapses = &e->synaptic.synapses;
        each += (sensory->begin[sensory->groups] + synapses->begin[synapses->groups]) * LNN_GROUP *
                OF_SYNAPSE;
    }
    return (double)once + (double)each * (double)sub_steps(e, dt);
}

double lnn_image_work(const lnn_engine *e)
{
    double work = 0;
    for (int64_t i = 0; i < e->convolutions; i++) {
        const lnn_convolution_plan *plan = &e->convolution[i];
        const int64_t pixels = plan->rows * plan->columns;
        work += (double)pixels * (double)(plan->taps * plan->channels);
    }
    return work + (double)(e->map_features.inputs * e->map_features.outputs);
}

int lnn_advance(lnn_engine *e, double dt)
{
    int64_t steps = sub_steps(e, dt);
    if (!steps)
        return 0;
    const real *end = drive(e), *start = e->has_start ? e->driven : end;
    if (e->hold == LNN_HOLD_CURRENT)
        start = end;
    else if (e->hold == LNN_HOLD_PREVIOUS)
        end = start;
    if (e->form == LNN_LIQUID && start == end) /* one step is the solution */
        steps = 1;
    const real step = (real)(dt / (double)steps);
    if (e->form == LNN_NEURAL)
        e->kernels->neural_ltc(&e->neural, start, end, e->state, e->work, steps, step);
    else if (e->form == LNN_LIQUID)
        e->kernels->liquid_cell(&e->liquid, start, end, e->state, e->work, steps, step);
    else
        e->kernels->synaptic_ltc(&e->synaptic, start, end, e->state, e->work, steps, step);
    settle(e);
    return 1;
}

void lnn_command(lnn_engine *e)
{
    memcpy(e->joint, e->state, (size_t)e->motors * sizeof(real));
    for (int64_t i = 0; e->output_w && i < e->motors; i++)
        e->joint[i] = e->joint[i] * e->output_w[i] + e->output_b[i];
    const real *value = e->joint;
    for (int64_t i = 0; i < e->readouts; i++) {
        e->kernels->affine(&e->readout[i], e->readout[i].bias, value, e->hidden[i]);
        if (i + 1 < e->readouts)
            e->kernels->elementwise(LNN_RELU, e->readout[i].outputs, e->hidden[i], e->hidden[i]);
        value = e->hidden[i];
    }
    real *outputs = e->hidden[e->readouts - 1];
    real bad = 0; /* or NaN: what is infinite might not reach the outputs, through a ReLU */
    for (int64_t i = 0; i < e->units; i++)
        bad += e->state[i] - e->state[i];
    for (int64_t i = 0; i < e->outputs; i++)
        outputs[i] = outputs[i] * e->half[i] + e->middle[i] + bad;
}
