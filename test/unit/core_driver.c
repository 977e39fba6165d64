/* Runs the C core over many sizes under the sanitizers; every buffer is exactly as large as said.
 * Prints the number of engines, images and training scans that it ran. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

static uint32_t seed = 1;

static uint32_t draw(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

static real *numbers(int64_t count)
{
    real *out = malloc((size_t)(count ? count : 1) * sizeof *out);
    for (int64_t i = 0; i < count; i++)
        out[i] = (real)draw(2001) / 1000 - 1;
    return out;
}

static void *kept[256];
static int keeping;

static const real *weights(int64_t count)
{
    return kept[keeping++] = numbers(count);
}

static int doubled; /* whether some synapse was drawn twice, which an engine must refuse */

static lnn_synapses synapses_between(int64_t sources, int64_t targets)
{
    const uint32_t share = draw(5);
    const size_t most = (size_t)(sources * targets);
    int64_t *source = malloc(most * sizeof *source), *target = malloc(most * sizeof *target);
    kept[keeping++] = source;
    kept[keeping++] = target;
    int64_t count = 0;
    for (int64_t pair = 0; pair < sources * targets; pair++)
        if (draw(4) < share) {
            source[count] = pair % sources;
            target[count++] = pair / sources;
        }
    if (count > 1 && draw(9) == 0) {
        source[0] = source[count - 1];
        target[0] = target[count - 1];
        doubled = 1;
    }
    const lnn_synapses synapses = {
        count,          sources,        targets,        source,        target,
        weights(count), weights(count), weights(count), weights(count),
    };
    return synapses;
}

static int run_engine(const lnn_kernels *kernels)
{
    lnn_policy policy;
    memset(&policy, 0, sizeof policy);
    doubled = 0;
    policy.units = 1 + draw(70);
    policy.max_step = 0.05;
    policy.age_scale = 0.5;
    policy.imu = draw(7);
    lnn_convolution layer[4];
    int64_t inputs = policy.imu;
    if (draw(3)) {
        policy.channels = draw(2) ? 3 : 1;
        int64_t channels = policy.channels, height = 1 + draw(20), width = 1 + draw(20);
        policy.height = height;
        policy.width = width;
        policy.convolutions = draw(5);
        policy.convolution = layer;
        for (int64_t i = 0; i < policy.convolutions; i++) {
            const int64_t k = 1 + draw(4);
            layer[i].channels = 1 + draw(20);
            layer[i].kernel = k;
            layer[i].stride = 1 + draw(3);
            layer[i].padding = draw((uint32_t)k);
            layer[i].weight = weights(layer[i].channels * channels * k * k);
            layer[i].bias = weights(layer[i].channels);
            height = (height + 2 * layer[i].padding - k) / layer[i].stride + 1;
            width = (width + 2 * layer[i].padding - k) / layer[i].stride + 1;
            channels = layer[i].channels;
            if (height < 1 || width < 1) { /* it does not fit: must be refused */
                height = width = 0;
                break;
            }
        }
        policy.features.outputs = 1 + draw(30);
        policy.features.weight = weights(policy.features.outputs * channels * height * width);
        policy.features.bias = weights(policy.features.outputs);
        inputs += policy.features.outputs + 1;
    }
    const int64_t units = policy.units;
    int64_t mapped = inputs;
    lnn_linear mapping[3];
    policy.hold = draw(3);
    policy.mappings = draw(4);
    policy.mapping = mapping;
    for (int64_t i = 0; i < policy.mappings; i++) {
        mapping[i].outputs = 1 + draw(40);
        mapping[i].weight = weights(mapped * mapping[i].outputs);
        mapping[i].bias = weights(mapping[i].outputs);
        mapped = mapping[i].outputs;
    }
    policy.form = (lnn_form)draw(LNN_FORMS);
    policy.motors = policy.form < LNN_SYNAPTIC ? units : 1 + draw((uint32_t)units);
    policy.unfolds = 1 + draw(3);
    if (policy.form == LNN_NEURAL) {
        const lnn_neural_ltc cell = {
            weights(units * mapped), weights(units * units), weights(units), weights(units),
            weights(units * mapped), weights(units),         weights(units), weights(units),
        };
        policy.neural = cell;
    } else if (policy.form == LNN_LIQUID) {
        const lnn_liquid_cell cell = {
            weights(units * mapped), weights(units),             weights(2 * units * mapped),
            weights(2 * units),      weights(2 * units * units), weights(units),
        };
        policy.liquid = cell;
    } else {
        const lnn_synaptic_ltc cell = {
            synapses_between(mapped, units), synapses_between(units, units),
            weights(units), weights(units), weights(units), weights(mapped), weights(mapped),
            weights(policy.motors), weights(policy.motors),
        };
        policy.synaptic = cell;
        /* these two are not an engine's to believe */
        policy.synaptic.sensory.targets = policy.synaptic.synapses.targets = INT64_MAX;
        policy.synaptic.sensory.sources = policy.synaptic.synapses.sources = -1;
    }
    lnn_linear readout[4];
    policy.readouts = 1 + draw(4);
    policy.readout = readout;
    int64_t before = policy.motors + inputs;
    for (int64_t i = 0; i < policy.readouts; i++) {
        readout[i].outputs = 1 + draw(40);
        readout[i].weight = weights(before * readout[i].outputs);
        readout[i].bias = weights(readout[i].outputs);
        before = readout[i].outputs;
    }
    policy.middle = weights(before);
    policy.half = weights(before);

    int ran = 0;
    const int is_wired = policy.form == LNN_SYNAPTIC || policy.form == LNN_SYNAPTIC_FUSED;
    const size_t size = lnn_engine_size(&policy);
    if (size) {
        void *memory = NULL;
        if (posix_memalign(&memory, 64, size))
            return 0;
        memset(memory, 0, size);
        lnn_engine *engine = lnn_engine_place(memory, &policy, kernels);
        if (!engine != (is_wired && doubled))
            abort();
        real *pixels = numbers(policy.channels * policy.height * policy.width);
        real *imu = numbers(policy.imu);
        for (int step = 0; engine && step < 3; step++) {
            if (policy.channels)
                lnn_hold_image(engine, pixels), lnn_hold_age(engine, 0.1 * step);
            lnn_hold_imu(engine, imu);
            if (draw(3))
                lnn_advance(engine, 0.03 + 0.1 * step);
            else if (draw(2))
                lnn_jump(engine);
            else
                lnn_reset(engine);
            lnn_command(engine);
        }
        for (int64_t i = 0; engine && i < before; i++)
            ran |= lnn_engine_outputs(engine)[i] == lnn_engine_outputs(engine)[i];
        for (int64_t i = 0; engine && i < units; i++)
            ran |= lnn_engine_state(engine)[i] == lnn_engine_state(engine)[i];
        if (engine) {
            lnn_advance(engine, -1.0);
            lnn_advance(engine, 0.0 / 0.0 * (double)imu[0]);
            lnn_advance(engine, 1e300);
        }
        free(pixels);
        free(imu);
        free(memory);
    }
    while (keeping)
        free(kept[--keeping]);
    return ran;
}

static void refuse_hostile_sizes(void)
{
    const int64_t hostile[] = {INT64_MIN, -1, 0, 1, 65536, 65537, 1000000007, INT64_MAX};
    const int count = sizeof hostile / sizeof *hostile;
    for (int i = 0; i < 200000; i++) {
        lnn_policy policy;
        lnn_convolution layers[16];
        lnn_linear readouts[16], mappings[16];
        memset(&policy, 0, sizeof policy);
        memset(layers, 0, sizeof layers);
        memset(readouts, 0, sizeof readouts);
        memset(mappings, 0, sizeof mappings);
        mappings[0].outputs = mappings[1].outputs = hostile[draw((uint32_t)count)];
        policy.form = (lnn_form)draw(LNN_FORMS);
        int64_t *sizes[] = {&policy.units,        &policy.imu,           &policy.channels,
                            &policy.height,       &policy.width,         &policy.convolutions,
                            &policy.readouts,     &layers[0].channels,   &layers[0].kernel,
                            &layers[0].stride,    &layers[0].padding,    &readouts[0].outputs,
                            &readouts[1].outputs, &policy.features.outputs, &policy.motors,
                            &policy.unfolds,      &policy.mappings,      &policy.hold,
                            &policy.synaptic.sensory.count, &policy.synaptic.synapses.count};
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
            *sizes[k] = draw(3) ? 1 + draw(9) : hostile[draw((uint32_t)count)];
        policy.max_step = draw(4) ? 0.05 : 0.0;
        policy.age_scale = 1;
        policy.convolution = layers;
        policy.readout = readouts;
        policy.mapping = mappings;
        if (lnn_engine_size(&policy) > (size_t)1 << 30)
            abort();
    }
}

static int see_image(const lnn_kernels *kernels)
{
    const int64_t height = 1 + draw(700), width = 1 + draw(60), rows = 1 + draw(9);
    const int64_t columns = 1 + draw(9), source = draw(3) == 0 ? 1 : 3 + draw(2);
    const size_t step = (size_t)(width * source) + draw(9);
    int64_t first[2][16], counts[2][16];
    real share[16];
    for (int i = 0; i < 16; i++)
        share[i] = (real)(1 + draw(9)) / 100;
    for (int axis = 0; axis < 2; axis++)
        for (int64_t i = 0; i < 10; i++) {
            const int64_t cells = axis ? width : height;
            first[axis][i] = draw((uint32_t)cells);
            counts[axis][i] = 1 + draw((uint32_t)(cells - first[axis][i]));
        }
    const real *mix = weights(16);
    const lnn_view view = {
        {first[0], counts[0], share, share + 1, share + 2, rows},
        {first[1], counts[1], share, share + 1, share + 2, columns},
        mix, share, 3, source, width,
    };
    const size_t bytes = (size_t)(height - 1) * step + (size_t)(width * source);
    uint8_t *image = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        image[i] = (uint8_t)draw(256);
    real *scratch = numbers((int64_t)lnn_view_scratch(&view));
    real *pixels = numbers(3 * rows * columns);
    lnn_see(&view, kernels, image, step, scratch, pixels);
    free(image);
    free(scratch);
    free(pixels);
    while (keeping)
        free(kept[--keeping]);
    return 1;
}

static int64_t *indices(int64_t count, int64_t below)
{
    int64_t *out = malloc((size_t)(count ? count : 1) * sizeof *out);
    for (int64_t i = 0; i < count; i++)
        out[i] = draw((uint32_t)below);
    return kept[keeping++] = out;
}

static real *space(int64_t count)
{
    return kept[keeping++] = numbers(count);
}

static lnn_of_synapses of_synapses(int64_t count)
{
    const lnn_of_synapses made = {space(count), space(count), space(count), space(count)};
    return made;
}

/* Any form, any number of samples, each with its own number of sub-steps, none included. */
static int run_scan(const lnn_kernels *kernels)
{
    lnn_scan scan;
    lnn_of_scan of;
    memset(&scan, 0, sizeof scan);
    scan.form = draw(LNN_FORMS);
    scan.batch = 1 + draw(70);
    scan.units = 1 + draw(20);
    int64_t *offset = indices(scan.batch + 1, 1);
    int64_t *interval = indices(scan.batch * 20 + 1, 1), intervals = 0, steps = 0;
    for (int64_t b = 0; b < scan.batch; b++) {
        for (int64_t many = draw(5); many > 0; many--, intervals++)
            for (int64_t parts = 1 + draw(4); parts > 0; parts--)
                interval[steps++] = intervals;
        offset[b + 1] = steps;
    }
    scan.offset = offset;
    scan.interval = draw(3) ? interval : NULL;
    scan.is_held = scan.interval && draw(2);
    scan.rows = scan.is_held ? intervals : steps;
    real *width = space(steps);
    for (int64_t t = 0; t < steps; t++)
        width[t] = draw(3) ? (real)draw(100) / 100 : 0;
    real *driven = space(scan.rows * 2 * scan.units);
    for (int64_t i = 0; i < scan.rows * 2 * scan.units; i++)
        driven[i] = (real)1.5 + driven[i]; /* a conductance is never negative */
    const int64_t units = scan.units, ends = scan.interval ? intervals : steps;
    scan.width = width;
    scan.driven = driven;
    scan.start = weights(scan.batch * units);
    scan.states = space(steps * units);
    scan.rate = weights(units);
    scan.weight = weights(units * units);
    scan.gain = weights(units);
    scan.reversal = weights(units);
    scan.synapses = synapses_between(units, units);
    const lnn_of_scan made = {
        weights(ends * units), space(steps),        space(scan.rows * 2 * units),
        space(scan.batch * units), space(units),    space(units * units),
        space(units),          space(units),        of_synapses(scan.synapses.count),
    };
    of = made;
    void *memory = NULL;
    if (posix_memalign(&memory, 64, lnn_scan_memory(&scan) + 64))
        return 0;
    lnn_scan_forward(&scan, kernels, memory);
    lnn_scan_back(&scan, &of, kernels, memory);
    free(memory);

    const int64_t rows = 1 + draw(70), sources = 1 + draw(9), targets = 1 + draw(9);
    const lnn_synapses sensory = synapses_between(sources, targets);
    const lnn_of_synapses of_sensory = of_synapses(sensory.count);
    real *x = space(rows * sources), *out = space(rows * 2 * targets);
    x[0] *= draw(2) ? 1 : (real)1e30;
    if (posix_memalign(&memory, 64, lnn_synapses_memory(&sensory) + 64))
        return 0;
    lnn_open(&sensory, kernels, rows, x, weights(2 * targets), out, memory);
    lnn_open_back(&sensory, &of_sensory, kernels, rows, x, out, space(rows * sources),
                  space(2 * targets), memory);
    free(memory);
    int good = 1;
    for (int64_t i = 0; i < steps * units; i++)
        good &= scan.states[i] == scan.states[i];
    while (keeping)
        free(kept[--keeping]);
    return good;
}

int main(void)
{
    int engines = 0, images = 0, scans = 0;
    refuse_hostile_sizes();
    for (int i = 0; lnn_kernels_at(i); i++)
        for (int k = 0; k < 300; k++) {
            engines += run_engine(lnn_kernels_at(i));
            images += see_image(lnn_kernels_at(i));
            scans += run_scan(lnn_kernels_at(i));
        }
    printf("%d engines, %d images, %d scans\n", engines, images, scans);
    return 0;
}
