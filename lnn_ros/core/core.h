/* One policy step, from image bytes and scaled IMU numbers to a command: lnn_ros at run time.
 *
 * C99 with GCC's vector types (GCC and Clang, any processor), no dependency but libc's memcpy. It
 * neither allocates nor keeps anything global: the caller asks for a size, brings that memory, and
 * owns it. Nothing here checks what it is told at each call; the Python face does, before it calls.
 * Sizes are checked once, when an engine is laid out; that arrays are as long as they say, and that
 * indices of synapses lie below sources and targets, is the caller's promise.
 *
 * `real` is float; with LNN_DOUBLE it is double, for tests of the same source.
 */
#ifndef LNN_CORE_H
#define LNN_CORE_H

#include <stddef.h>
#include <stdint.h>

#ifdef LNN_DOUBLE
typedef double real;
#else
typedef float real;
#endif

/* A processor's variant of the inner loops: lnn_best_kernels(), or one of lnn_kernels_at(0, 1, ...)
 * (NULL after the last that this processor runs; the first runs everywhere). */
typedef struct lnn_kernels lnn_kernels;
const lnn_kernels *lnn_kernels_at(int index);
const lnn_kernels *lnn_best_kernels(void);
const char *lnn_kernels_name(const lnn_kernels *kernels);

/* weight (outputs, inputs) row by row, bias (outputs); inputs follow from what stands before */
typedef struct {
    int64_t outputs;
    const real *weight, *bias;
} lnn_linear;

/* weight (channels, channels before, kernel, kernel), bias (channels); ReLU follows */
typedef struct {
    int64_t channels, kernel, stride, padding;
    const real *weight, *bias;
} lnn_convolution;

/* The neural LTC cell: (units, inputs of the cell), (units, units) and (units) arrays;
 * gain = exp(log_gain), rate = 1 / tau in 1/s. */
typedef struct {
    const real *gate_input, *gate_recurrent, *gate_bias, *gain, *drive, *reversal, *leak, *rate;
} lnn_neural_ltc;

/* Synapses in any order, each from a source to a target, (count) numbers of each kind: conductance
 * w sigmoid(sigma (x - mu)) towards erev, x being the value of the source. At most one for each
 * source and target; an engine knows their counts from its policy, and does not read them here. */
typedef struct {
    int64_t count, sources, targets;
    const int64_t *source, *target;
    const real *w, *sigma, *mu, *erev;
} lnn_synapses;

/* The synaptic LTC cell: (units) arrays, input_w and _b (inputs of the cell), output_w and _b
 * (motors). */
typedef struct {
    lnn_synapses sensory, synapses;
    const real *gl, *vl, *cm, *input_w, *input_b, *output_w, *output_b;
} lnn_synaptic_ltc;

/* LiquidCell: tau (units) and hidden (2 units) of the cell's input, out (units) of hidden; as in
 * lnn_linear. */
typedef struct {
    const real *tau_weight, *tau_bias, *hidden_weight, *hidden_bias, *out_weight, *out_bias;
} lnn_liquid_cell;

/* Cells and how they are solved: `exact`, or `fused` where it says so. */
typedef enum { LNN_LIQUID, LNN_NEURAL, LNN_SYNAPTIC, LNN_SYNAPTIC_FUSED, LNN_FORMS } lnn_form;

/* What the cell's input is over an interval: that of its end, of its start, or a ramp between. */
enum { LNN_HOLD_CURRENT, LNN_HOLD_PREVIOUS, LNN_HOLD_LINEAR };

/* A whole policy; arrays are copied by lnn_engine_place, not kept.
 *
 * u = [features, age, imu] with an encoder (convolutions, then `features`: linear and tanh), else
 * [imu]. The cell sees mapping(u), layers with SiLU between them (none: u itself), the readout sees
 * [what is read of the state, u]: all of it, or the first `motors` units of a synaptic cell through
 * output_w and output_b. Readout layers have ReLU between them; the command is output * half +
 * middle. */
typedef struct {
    lnn_form form;
    int64_t units, motors, unfolds, imu, channels, height, width;
    int64_t convolutions, mappings, readouts, hold;
    double max_step;
    double age_scale;
    lnn_neural_ltc neural; /* the one that `form` says */
    lnn_synaptic_ltc synaptic;
    lnn_liquid_cell liquid;
    const lnn_convolution *convolution;
    lnn_linear features;
    const lnn_linear *mapping;
    const lnn_linear *readout;
    const real *middle, *half;
} lnn_policy;

typedef struct lnn_engine lnn_engine;

/* Bytes that an engine for `policy` takes; 0 when its sizes make no engine that can be had. */
size_t lnn_engine_size(const lnn_policy *policy);

/* Lay an engine out in `memory` (64-byte aligned, zeroed, lnn_engine_size bytes); NULL when a synapse
 * is there twice. */
lnn_engine *lnn_engine_place(void *memory, const lnn_policy *policy, const lnn_kernels *kernels);

/* (units), inside the engine's memory */
real *lnn_engine_state(lnn_engine *engine);
/* (outputs), inside the engine's memory */
real *lnn_engine_outputs(lnn_engine *engine);

/* pixels (channels, height, width); 0 when one is not finite, and then nothing has changed */
int lnn_hold_image(lnn_engine *engine, const real *pixels);
/* values (imu); 0 when one is not finite, and then nothing has changed */
int lnn_hold_imu(lnn_engine *engine, const real *values);
/* seconds; 0 when not finite, and then nothing has changed */
int lnn_hold_age(lnn_engine *engine, double age);
/* Zero the state; the held inputs stay, and the next interval has none before them. */
void lnn_reset(lnn_engine *engine);
/* The interval that ends with the inputs held now. dt in seconds, > 0; 0 when it is not, or has too
 * many sub-steps, and then nothing has changed */
int lnn_advance(lnn_engine *engine, double dt);
/* About how many operations lnn_advance takes, and lnn_hold_image; 0 when it refuses. */
double lnn_advance_work(const lnn_engine *engine, double dt);
double lnn_image_work(const lnn_engine *engine);
/* What is held changed without time passing: the next interval begins with it. */
void lnn_jump(lnn_engine *engine);
/* fills lnn_engine_outputs; with NaN when the state is not finite */
void lnn_command(lnn_engine *engine);

/* For each of `target` cells: the `count` source cells from `first` on that it covers, and the
 * shares with which the first, the last (if there are two) and those between them count. */
typedef struct {
    const int64_t *first, *count;
    const real *first_share, *inner_share, *last_share;
    int64_t target;
} lnn_spans;

/* How an image becomes the network's view. A pixel's channels are offset + sum over s of
 * mix[4 s ...] * byte s of the source: always four of four, of which 1 or 3 `channels` are kept;
 * mix is 0 for bytes that the source has not, whatever is read for them. */
typedef struct {
    lnn_spans rows, columns;
    const real *mix, *offset;
    int64_t channels, source_channels, source_width;
} lnn_view;

/* reals of scratch memory that lnn_see takes */
size_t lnn_view_scratch(const lnn_view *view);

/* Average `image` (rows `step` bytes apart) to pixels (channels, height, width), normalised. */
void lnn_see(const lnn_view *view, const lnn_kernels *kernels, const uint8_t *image, size_t step,
             real *scratch, real *pixels);

/* The gradient of a loss with respect to each of them. */
typedef struct {
    real *w, *sigma, *mu, *erev;
} lnn_of_synapses;

/* Sequences of sub-steps of a cell, for training: sample b's are those from offset[b] to
 * offset[b + 1]. All are `exact` but those of LNN_SYNAPTIC_FUSED.
 *
 * driven: rows of what the input drives, two numbers per unit: rate and equilibrium (liquid), the
 * input's part of gate and current (neural), of conductance and current (synaptic). */
typedef struct {
    lnn_form form;
    int64_t batch, units, rows;
    const int64_t *offset;   /* (batch + 1), from 0 on, never falling */
    const int64_t *interval; /* (sub-steps): which each belongs to; NULL: each is one of its own */
    int is_held;             /* driven has a row for each interval, not for each sub-step */
    const real *width;          /* (sub-steps) seconds, >= 0 */
    const real *driven, *start; /* (rows, 2 units), (batch, units) */
    real *states;               /* (sub-steps, units): the state at the end of each */
    const real *rate;           /* (units): neural 1 / tau, synaptic 1 / cm */
    const real *weight, *gain, *reversal; /* neural: (units, units), (units), (units) */
    lnn_synapses synapses;                /* synaptic */
} lnn_scan;

/* The gradient with respect to the states at the ends of intervals, which is given, and to all
 * else, which is found. */
typedef struct {
    const real *ends;
    real *width, *driven, *start, *rate, *weight, *gain, *reversal;
    lnn_of_synapses synapses;
} lnn_of_scan;

/* Bytes of scratch memory, 64-byte aligned, that the functions below take. */
size_t lnn_scan_memory(const lnn_scan *scan);
size_t lnn_synapses_memory(const lnn_synapses *synapses);

/* Fill states, and the gradients from the states; neither checks anything. */
void lnn_scan_forward(const lnn_scan *scan, const lnn_kernels *kernels, void *memory);
void lnn_scan_back(const lnn_scan *scan, const lnn_of_scan *of, const lnn_kernels *kernels,
                   void *memory);

/* out (rows, 2 targets): `base` (2 targets), plus conductances and currents (conductance erev) into
 * each target of synapses whose sources are at x (rows, sources) */
void lnn_open(const lnn_synapses *synapses, const lnn_kernels *kernels, int64_t rows, const real *x,
              const real *base, real *out, void *memory);
void lnn_open_back(const lnn_synapses *synapses, const lnn_of_synapses *of,
                   const lnn_kernels *kernels, int64_t rows, const real *x, const real *of_out,
                   real *of_x, real *of_base, void *memory);

/* exp, sigmoid, tanh, ReLU, SiLU, softplus (function 0-5) of `count` numbers, as the inner loops
 * compute them */
void lnn_elementwise(const lnn_kernels *kernels, int function, int64_t count, const real *x,
                     real *out);

#endif
