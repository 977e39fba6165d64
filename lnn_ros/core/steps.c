/* One call of the core, many times, for instructions.py to count: steps WHAT SIZE COUNT, where WHAT
 * is `step` (IMU sample, 5 ms, command; SIZE units), `wired` or `dense` (the same of the synaptic form,
 * 6 unfolds, with a third of all synapses or all), `encode` (64x48, four layers) or `image` (SIZE
 * pixels wide, 4:3, to 64x48). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

static const real *weights(int64_t count)
{
    static uint32_t seed = 1;
    real *out = malloc((size_t)count * sizeof *out);
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        out[i] = (real)(seed >> 8) / (1 << 24) - (real)0.5;
    }
    return out;
}

/* positive, so that no conductance is negative */
static const real *positive(int64_t count)
{
    real *out = (real *)weights(count);
    for (int64_t i = 0; i < count; i++)
        out[i] += (real)0.75;
    return out;
}

/* every `apart`th synapse of all */
static lnn_synapses synapses(int64_t sources, int64_t targets, int64_t apart)
{
    int64_t *source = malloc((size_t)(sources * targets) * sizeof *source), count = 0;
    int64_t *target = malloc((size_t)(sources * targets) * sizeof *target);
    for (int64_t k = 0; k < sources * targets; k += apart, count++) {
        source[count] = k / targets;
        target[count] = k % targets;
    }
    const lnn_synapses made = {
        count,           sources,         targets,        source,        target,
        positive(count), positive(count), weights(count), weights(count),
    };
    return made;
}

/* apart: of the synapses; 0: neural */
static lnn_engine *make(int64_t units, int has_image, int64_t apart)
{
    static lnn_convolution layers[4];
    static const int64_t channels[5] = {3, 8, 16, 16, 16};
    lnn_policy policy;
    memset(&policy, 0, sizeof policy);
    int64_t inputs = policy.imu = 6;
    if (has_image) {
        policy.channels = 3;
        policy.height = 48;
        policy.width = 64;
        policy.convolutions = 4;
        policy.convolution = layers;
        for (int i = 0; i < 4; i++) {
            const lnn_convolution layer = {channels[i + 1], 3, 2, 1,
                                           weights(channels[i + 1] * channels[i] * 9),
                                           weights(channels[i + 1])};
            layers[i] = layer;
        }
        policy.features.outputs = 24;
        policy.features.weight = weights(24 * 16 * 3 * 4);
        policy.features.bias = weights(24);
        inputs += 25;
    }
    policy.form = LNN_NEURAL;
    policy.units = policy.motors = units;
    policy.unfolds = 1;
    policy.max_step = 0.05;
    policy.age_scale = 1;
    if (apart) {
        policy.form = LNN_SYNAPTIC_FUSED;
        policy.unfolds = 6;
        const lnn_synaptic_ltc cell = {
            synapses(inputs, units, apart), synapses(units, units, apart),
            positive(units), weights(units), positive(units), weights(inputs), weights(inputs),
            weights(units), weights(units),
        };
        policy.synaptic = cell;
    } else {
        const lnn_neural_ltc cell = {
            weights(units * inputs), weights(units * units), weights(units), weights(units),
            weights(units * inputs), weights(units),         weights(units), weights(units),
        };
        policy.neural = cell;
    }
    const lnn_linear readout = {2, weights(2 * (units + inputs)), weights(2)};
    policy.readout = &readout;
    policy.readouts = 1;
    policy.middle = policy.half = weights(2);
    const size_t size = lnn_engine_size(&policy);
    void *memory = NULL;
    if (!size || posix_memalign(&memory, 64, size))
        exit(1);
    memset(memory, 0, size);
    return lnn_engine_place(memory, &policy, lnn_best_kernels());
}

static void see(int64_t width, int count)
{
    static uint8_t image[480 * 640 * 3];
    static real scratch[640 * 3 + 4], pixels[3 * 48 * 64];
    const int64_t cells = width / 64;
    int64_t first[64], counts[64];
    real share[64];
    for (int i = 0; i < 64; i++) {
        first[i] = cells * i;
        counts[i] = cells;
        share[i] = (real)1 / (real)cells;
    }
    const lnn_view view = {{first, counts, share, share, share, 48},
                           {first, counts, share, share, share, 64},
                           share, share, 3, 3, width};
    for (int k = 0; k < count; k++)
        lnn_see(&view, lnn_best_kernels(), image, (size_t)width * 3, scratch, pixels);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 1;
    const int count = atoi(argv[3]);
    if (!strcmp(argv[1], "image") && (atoi(argv[2]) == 64 || atoi(argv[2]) == 640)) {
        see(atoi(argv[2]), count);
        return 0;
    }
    const int has_image = !strcmp(argv[1], "encode");
    const int64_t apart = !strcmp(argv[1], "dense") ? 1 : !strcmp(argv[1], "wired") ? 3 : 0;
    lnn_engine *engine = make(atoi(argv[2]), has_image, apart);
    const real *sample = weights(6), *pixels = weights(3 * 48 * 64);
    for (int k = 0; k < count; k++)
        if (has_image) {
            lnn_hold_image(engine, pixels);
        } else {
            lnn_hold_imu(engine, sample);
            lnn_advance(engine, 0.005);
            lnn_command(engine);
        }
    return lnn_engine_outputs(engine)[0] != lnn_engine_outputs(engine)[0];
}
