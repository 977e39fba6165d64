/* libFuzzer's target for the C core: sizes, weights, inputs and images are all drawn from the data.
 * Every buffer is exactly as large as core.h says, and lies between the address sanitizer's guards.
 * `make fuzz` builds and runs it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { MOST_LAYERS = 16, MOST_BUFFERS = 160, MOST_ENGINE = 1 << 22 };

static const uint8_t *data;
static size_t left;
static void *buffers[MOST_BUFFERS];
static int used;

static void must(int condition)
{
    if (!condition)
        abort();
}

static uint8_t byte(void)
{
    return left ? left--, *data++ : 0;
}

static void *buffer(size_t bytes)
{
    must(used < MOST_BUFFERS);
    must((buffers[used] = malloc(bytes ? bytes : 1)) != NULL);
    return buffers[used++];
}

/* most often a size that can be had */
static int64_t size(void)
{
    static const int64_t hostile[] = {INT64_MIN, INT64_MIN + 1, -65536,     -1,        INT64_MAX,
                                      4096,      65535,         65536,      65537,     1 << 28,
                                      1 << 30,   INT32_MAX,     1LL << 32,  1LL << 48, 1LL << 62};
    const uint8_t drawn = byte();
    return drawn < 224 ? drawn % 24 : hostile[drawn % (sizeof hostile / sizeof *hostile)];
}

static real number(void)
{
    static const real hostile[] = {0,       (real)-0.0, NAN,          INFINITY,      -INFINITY,
                                   1e38f,   -1e38f,     1e-40f,       -1e-40f,       3.4e38f};
    const uint8_t drawn = byte();
    return drawn < 240 ? (real)(drawn - 120) / 32
                       : hostile[drawn % (sizeof hostile / sizeof *hostile)];
}

static real *numbers(int64_t count)
{
    real *out = buffer((size_t)count * sizeof *out);
    for (int64_t i = 0; i < count; i++)
        out[i] = left ? number() : i ? out[i / 2] / 2 : 0;
    return out;
}

static int finite(const real *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(x[i]))
            return 0;
    return 1;
}

static int small(int64_t value)
{
    return 0 <= value && value < 4096;
}

static int doubled; /* whether some synapse was drawn twice, which an engine must refuse */

/* source and target in range: the Python face makes them from a matrix */
static lnn_synapses draw_synapses(int64_t sources, int64_t targets)
{
    const int64_t count = (byte() * 257 + byte()) % (sources * targets + 1);
    uint8_t *seen = buffer((size_t)(sources * targets));
    memset(seen, 0, (size_t)(sources * targets));
    int64_t *source = buffer((size_t)count * sizeof *source);
    int64_t *target = buffer((size_t)count * sizeof *target);
    for (int64_t k = 0; k < count; k++) {
        source[k] = (byte() + 7 * k) % sources;
        target[k] = (byte() + 3 * k) % targets;
        if (byte() % 4) /* most often another pair, in turn, where this one is taken */
            while (seen[source[k] * targets + target[k]]) {
                source[k] = (source[k] + 1) % sources;
                target[k] = (target[k] + !source[k]) % targets;
            }
        doubled |= seen[source[k] * targets + target[k]]++;
    }
    const lnn_synapses synapses = {
        count,          sources,        targets,        source,        target,
        numbers(count), numbers(count), numbers(count), numbers(count),
    };
    return synapses;
}

static void draw_cell(lnn_policy *policy, int64_t seen)
{
    const int64_t units = policy->units;
    if (policy->form == LNN_NEURAL) {
        const lnn_neural_ltc cell = {
            numbers(units * seen), numbers(units * units), numbers(units), numbers(units),
            numbers(units * seen), numbers(units),         numbers(units), numbers(units),
        };
        policy->neural = cell;
    } else if (policy->form == LNN_LIQUID) {
        const lnn_liquid_cell cell = {
            numbers(units * seen), numbers(units),             numbers(2 * units * seen),
            numbers(2 * units),    numbers(2 * units * units), numbers(units),
        };
        policy->liquid = cell;
    } else {
        const lnn_synaptic_ltc cell = {
            policy->synaptic.sensory, policy->synaptic.synapses,
            numbers(units), numbers(units), numbers(units), numbers(seen), numbers(seen),
            numbers(policy->motors), numbers(policy->motors),
        };
        policy->synaptic = cell;
    }
}

static void run(lnn_engine *engine, const lnn_policy *policy)
{
    const int64_t area = policy->channels * policy->height * policy->width;
    real *state = lnn_engine_state(engine);
    const double longest = 50 * policy->max_step / (double)policy->unfolds;
    while (left) {
        real before = state[0], *input;
        double seconds = ldexp(number(), byte() % 64 - 32);
        switch (byte() % 7) {
        case 0:
            if (policy->channels) {
                input = numbers(area);
                must(lnn_hold_image(engine, input) == finite(input, area));
                free(buffers[--used]);
            }
            break;
        case 1:
            input = numbers(policy->imu);
            must(lnn_hold_imu(engine, input) == finite(input, policy->imu));
            free(buffers[--used]);
            break;
        case 2:
            must(policy->channels || !lnn_hold_age(engine, seconds));
            lnn_hold_age(engine, seconds);
            break;
        case 3:
            if (seconds > longest)
                seconds = longest; /* many sub-steps are slow, not wrong */
            if (!lnn_advance(engine, seconds))
                must(!memcmp(&before, state, sizeof before));
            else
                must(seconds > 0 && isfinite(seconds));
            break;
        case 4:
            lnn_jump(engine);
            break;
        case 5:
            lnn_reset(engine);
            break;
        default:
            lnn_command(engine);
        }
        if (!finite(state, policy->units)) /* what the controller does then */
            lnn_reset(engine);
    }
}

static int64_t draw_layers(lnn_linear *layer, int64_t layers, int64_t before)
{
    for (int64_t i = 0; i < layers; i++) {
        layer[i].weight = numbers(layer[i].outputs * before);
        layer[i].bias = numbers(layer[i].outputs);
        before = layer[i].outputs;
    }
    return before;
}

static void try_engine(const lnn_kernels *kernels)
{
    static lnn_convolution layer[MOST_LAYERS];
    static lnn_linear mapping[MOST_LAYERS], readout[MOST_LAYERS];
    lnn_policy policy;
    memset(&policy, 0, sizeof policy);
    policy.form = (lnn_form)(byte() % (LNN_FORMS + 1));
    policy.units = size();
    policy.motors = byte() % 8 ? policy.units : size();
    policy.unfolds = byte() % 16 ? 1 + byte() % 6 : size();
    policy.imu = size();
    policy.channels = byte() % 4 ? byte() % 4 : size();
    policy.height = size();
    policy.width = size();
    policy.features.outputs = size();
    policy.convolutions = byte() % 16 ? byte() % 5 : size();
    policy.mappings = byte() % 16 ? byte() % 3 : size();
    policy.hold = byte() % 16 ? byte() % 3 : size();
    policy.readouts = byte() % 16 ? 1 + byte() % 3 : size();
    policy.max_step = fabs(number());
    policy.age_scale = byte() % 8 ? 1 : number();
    for (int64_t i = 0; i < policy.convolutions && i < MOST_LAYERS; i++) {
        layer[i].channels = size();
        layer[i].kernel = byte() % 16 ? 1 + byte() % 4 : size();
        layer[i].stride = byte() % 16 ? 1 + byte() % 3 : size();
        layer[i].padding = byte() % 16 ? byte() % 3 : size();
    }
    for (int64_t i = 0; i < policy.mappings && i < MOST_LAYERS; i++)
        mapping[i].outputs = size();
    for (int64_t i = 0; i < policy.readouts && i < MOST_LAYERS; i++)
        readout[i].outputs = size();
    policy.mapping = mapping;
    policy.convolution = layer;
    policy.readout = readout;

    policy.synaptic.sensory.count = size();
    policy.synaptic.synapses.count = size();
    must(lnn_engine_size(&policy) <= (size_t)1 << 30);
    policy.synaptic.sensory.count = policy.synaptic.synapses.count = 0;
    const int is_synaptic = policy.form == LNN_SYNAPTIC || policy.form == LNN_SYNAPTIC_FUSED;
    const int64_t features = policy.channels ? policy.features.outputs : -1;
    if (is_synaptic && small(policy.units) && (features == -1 || small(features)) && small(policy.imu) &&
        small(policy.mappings) && policy.mappings <= MOST_LAYERS) {
        const int64_t last = policy.mappings - 1;
        const int64_t seen = last < 0 ? features + 1 + policy.imu : mapping[last].outputs;
        if (small(seen) && seen && policy.units) {
            policy.synaptic.sensory = draw_synapses(seen, policy.units);
            policy.synaptic.synapses = draw_synapses(policy.units, policy.units);
        }
    }
    const size_t bytes = lnn_engine_size(&policy);
    must(bytes <= (size_t)1 << 30);
    if (!bytes || bytes > MOST_ENGINE)
        return;
    int64_t inputs = policy.imu;
    if (policy.channels) {
        int64_t before = policy.channels, height = policy.height, width = policy.width;
        for (int64_t i = 0; i < policy.convolutions; i++) {
            lnn_convolution *c = &layer[i];
            c->weight = numbers(c->channels * before * c->kernel * c->kernel);
            c->bias = numbers(c->channels);
            height = (height + 2 * c->padding - c->kernel) / c->stride + 1;
            width = (width + 2 * c->padding - c->kernel) / c->stride + 1;
            before = c->channels;
        }
        policy.features.weight = numbers(policy.features.outputs * before * height * width);
        policy.features.bias = numbers(policy.features.outputs);
        inputs += policy.features.outputs + 1;
    }
    draw_cell(&policy, draw_layers(mapping, policy.mappings, inputs));
    const int64_t before = draw_layers(readout, policy.readouts, policy.motors + inputs);
    policy.middle = numbers(before);
    policy.half = numbers(before);

    void *memory = NULL;
    must(!posix_memalign(&memory, 64, bytes));
    memset(memory, 0, bytes);
    lnn_engine *engine = lnn_engine_place(memory, &policy, kernels);
    must(!engine == (is_synaptic && doubled));
    if (engine)
        run(engine, &policy);
    free(memory);
}

/* what the Python face promises: spans inside the image, rows that do not overlap */
static void draw_spans(lnn_spans *spans, int64_t cells)
{
    spans->target = 1 + byte() % 40;
    int64_t *first = buffer((size_t)spans->target * sizeof *first);
    int64_t *count = buffer((size_t)spans->target * sizeof *count);
    const int copied = spans->target <= cells && byte() % 4 == 0;
    for (int64_t i = 0; i < spans->target; i++) {
        first[i] = copied ? i : (byte() * 257 + byte()) % cells;
        count[i] = copied ? 1 : 1 + (byte() * 257 + byte()) % (cells - first[i]);
    }
    spans->first = first;
    spans->count = count;
    real *shares = buffer((size_t)spans->target * sizeof *shares);
    for (int64_t i = 0; i < spans->target; i++)
        shares[i] = copied ? 1 : number();
    spans->first_share = shares;
    spans->inner_share = numbers(spans->target);
    spans->last_share = numbers(spans->target);
}

static void try_view(const lnn_kernels *kernels)
{
    lnn_view view;
    view.source_width = 1 + byte() % 70;
    view.source_channels = 1 + byte() % 4;
    view.channels = byte() % 2 ? 3 : 1;
    const int64_t height = 1 + (byte() * 257 + byte()) % 600;
    const size_t row = (size_t)(view.source_width * view.source_channels), step = row + byte() % 9;
    draw_spans(&view.rows, height);
    draw_spans(&view.columns, view.source_width);
    view.mix = numbers(16);
    view.offset = numbers(4);
    const size_t bytes = (size_t)(height - 1) * step + row;
    uint8_t *image = buffer(bytes);
    for (size_t i = 0; i < bytes; i++)
        image[i] = left ? byte() : (uint8_t)(i * 37);
    real *scratch = buffer(lnn_view_scratch(&view) * sizeof *scratch);
    memset(scratch, 0, lnn_view_scratch(&view) * sizeof *scratch);
    const int64_t pixels = view.channels * view.rows.target * view.columns.target;
    lnn_see(&view, kernels, image, step, scratch, buffer((size_t)pixels * sizeof(real)));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    data = bytes;
    left = count;
    doubled = 0;
    const lnn_kernels *kernels = lnn_kernels_at(byte() % 3);
    if (!kernels) /* fewer on this processor */
        kernels = lnn_best_kernels();
    if (byte() % 3)
        try_engine(kernels);
    else
        try_view(kernels);
    while (used)
        free(buffers[--used]);
    return 0;
}
