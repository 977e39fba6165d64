/* The inner loops for any processor; kernels_v3.c compiles this file again for AVX2 and FMA. */
#include "kernels.h"

#include "elementary.h"

#ifndef LNN_VARIANT
#define LNN_VARIANT lnn_kernels_baseline
#define LNN_VARIANT_NAME "baseline"
#endif

/* GCC's vector types: one register where the processor has it, else several. Unaligned. */
typedef real lanes __attribute__((vector_size(LNN_LANES * sizeof(real)), aligned(sizeof(real)),
                                  may_alias));
/* what comparing two of them gives: all bits set or none */
typedef __typeof__((lanes){0} < (lanes){0}) mask;
typedef real quad __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef uint16_t words16 __attribute__((vector_size(32), aligned(1), may_alias));

#define AT(type, pointer) (*(type *)(pointer))
#define CONST_AT(type, pointer) (*(const type *)(pointer))

static void affine(const lnn_map *map, const real *bias, const real *x, real *restrict out)
{
    const int64_t inputs = map->inputs, outputs = map->outputs;
    const real *w = map->weight;
    int64_t i = 0;
    for (; i + LNN_BLOCK <= outputs; i += LNN_BLOCK) {
        lanes a = CONST_AT(lanes, bias + i), b = CONST_AT(lanes, bias + i + LNN_LANES);
        lanes c = CONST_AT(lanes, bias + i + 2 * LNN_LANES);
        lanes d = CONST_AT(lanes, bias + i + 3 * LNN_LANES);
        for (int64_t j = 0; j < inputs; j++, w += LNN_BLOCK) {
            a += CONST_AT(lanes, w) * x[j];
            b += CONST_AT(lanes, w + LNN_LANES) * x[j];
            c += CONST_AT(lanes, w + 2 * LNN_LANES) * x[j];
            d += CONST_AT(lanes, w + 3 * LNN_LANES) * x[j];
        }
        AT(lanes, out + i) = a;
        AT(lanes, out + i + LNN_LANES) = b;
        AT(lanes, out + i + 2 * LNN_LANES) = c;
        AT(lanes, out + i + 3 * LNN_LANES) = d;
    }
    for (; i < outputs; i += LNN_LANES) { /* four sums, or each would wait for the one before it */
        lanes a = CONST_AT(lanes, bias + i), b = {0}, c = {0}, d = {0};
        int64_t j = 0;
        for (; j + 4 <= inputs; j += 4, w += 4 * LNN_LANES) {
            a += CONST_AT(lanes, w) * x[j];
            b += CONST_AT(lanes, w + LNN_LANES) * x[j + 1];
            c += CONST_AT(lanes, w + 2 * LNN_LANES) * x[j + 2];
            d += CONST_AT(lanes, w + 3 * LNN_LANES) * x[j + 3];
        }
        for (; j < inputs; j++, w += LNN_LANES)
            a += CONST_AT(lanes, w) * x[j];
        AT(lanes, out + i) = (a + b) + (c + d);
    }
}

/* ReLU, then as many of the lanes as there are channels. By address: without AVX a vector this
 * wide has no agreed way to be passed by value. */
static inline void store_rectified(const lanes *sum, real *out, int64_t channels)
{
    /* not < 0 instead of > 0: a NaN stays one */
    const lanes value = (lanes)((mask)*sum & ~(*sum < 0));
    if (channels >= LNN_LANES)
        AT(lanes, out) = value;
    else
        for (int64_t k = 0; k < channels; k++)
            out[k] = value[k];
}

/* `pixels` neighbours of `panels` times LNN_LANES channels; with constants for these two, the loops
 * over them vanish and the sums stay in registers. Eight at once, or each would wait for itself. */
static inline __attribute__((always_inline)) void
convolve_block(const lnn_convolution_plan *plan, const real *in, const real *w, const real *bias,
               real *out, int64_t channels, const int pixels, const int panels)
{
    const int64_t pixel = plan->stride * plan->before, segment = plan->kernel * plan->before;
    const int64_t panel = plan->kernel * segment * LNN_LANES;
    lanes sum[8];
    for (int k = 0; k < pixels * panels; k++)
        sum[k] = CONST_AT(lanes, bias + k / pixels * LNN_LANES);
    for (int64_t y = 0; y < plan->kernel; y++, in += plan->in_row)
        for (int64_t j = 0; j < segment; j++, w += LNN_LANES)
            for (int k = 0; k < pixels * panels; k++)
                sum[k] += CONST_AT(lanes, w + k / pixels * panel) * in[j + k % pixels * pixel];
    for (int k = 0; k < pixels * panels; k++)
        store_rectified(&sum[k], out + k % pixels * plan->channels + k / pixels * LNN_LANES,
                        channels - k / pixels * LNN_LANES);
}

static void convolve(const lnn_convolution_plan *plan, const real *in, real *out)
{
    const int64_t pixel = plan->stride * plan->before, columns = plan->columns;
    const int64_t panel = plan->kernel * plan->kernel * plan->before * LNN_LANES;
    for (int64_t first = 0, panels; first < plan->channels; first += panels * LNN_LANES) {
        const real *w = plan->weight + first / LNN_LANES * panel, *bias = plan->bias + first;
        const int64_t channels = plan->channels - first;
        panels = channels > LNN_LANES && columns >= 4 ? 2 : 1;
        const int64_t pixels = columns < 4 ? 1 : columns < 8 || panels == 2 ? 4 : 8;
        for (int64_t y = 0; y < plan->rows; y++)
            for (int64_t x = 0; x < columns; x += pixels) {
                /* the last block may overlap the one before: the same numbers once more */
                const int64_t at = x + pixels <= columns ? x : columns - pixels;
                const real *from = in + y * plan->stride * plan->in_row + at * pixel;
                real *to = out + y * plan->out_row + at * plan->channels + first;
                if (panels == 2)
                    convolve_block(plan, from, w, bias, to, channels, 4, 2);
                else if (pixels == 8)
                    convolve_block(plan, from, w, bias, to, channels, 8, 1);
                else if (pixels == 4)
                    convolve_block(plan, from, w, bias, to, channels, 4, 1);
                else
                    convolve_block(plan, from, w, bias, to, channels, 1, 1);
            }
    }
}

static void neural_ltc(const lnn_neural_ltc_plan *plan, const real *from, const real *to,
                       real *restrict state, real *restrict work, int64_t steps, real dt)
{
    const int64_t count = plan->lanes;
    real *gate = work, *middle = work + count;
    const real *driven = from == to ? from : middle, *current = driven + count;
    for (int64_t k = 0; k < steps; k++) {
        if (from != to) { /* what the input drives is affine in it, and so a ramp as the input is */
            const real fraction = ((real)k + (real)0.5) / (real)steps;
            for (int64_t i = 0; i < 2 * count; i++)
                middle[i] = from[i] + fraction * (to[i] - from[i]);
        }
        affine(&plan->recurrent, driven, state, gate);
        for (int64_t i = 0; i < count; i++) {
            /* f = gain sigmoid(...); h <- equilibrium + (h - equilibrium) exp(-dt (1 + f) / tau) */
            const real f = plan->gain[i] * lnn_sigmoid(gate[i]);
            const real opening = 1 + f;
            const real equilibrium = (current[i] + f * plan->reversal[i]) / opening;
            const real kept = lnn_exp(-dt * plan->rate[i] * opening);
            state[i] = equilibrium + (state[i] - equilibrium) * kept;
        }
    }
}

static void elementwise(int function, int64_t count, const real *x, real *out)
{
    if (function == LNN_EXP)
        for (int64_t i = 0; i < count; i++)
            out[i] = lnn_exp(x[i]);
    else if (function == LNN_SIGMOID)
        for (int64_t i = 0; i < count; i++)
            out[i] = lnn_sigmoid(x[i]);
    else if (function == LNN_TANH)
        for (int64_t i = 0; i < count; i++)
            out[i] = lnn_tanh(x[i]);
    else if (function == LNN_SILU)
        for (int64_t i = 0; i < count; i++)
            out[i] = x[i] * lnn_sigmoid(x[i]);
    else
        for (int64_t i = 0; i < count; i++)
            out[i] = x[i] < 0 ? 0 : x[i];
}

/* which byte of two in memory is the low half of a word */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LNN_LOW_BYTE 1
#else
#define LNN_LOW_BYTE 0
#endif

enum { AVERAGE_BLOCK = 32, AVERAGE_ROWS = 256 }; /* 256 rows of bytes still fit 16 bits */

static void average_rows(const uint8_t *first, size_t step, int64_t count, const real share[3],
                         int64_t bytes, real *restrict out)
{
    const uint8_t *last = first + (size_t)(count - 1) * step;
    /* every row counts with the inner share; the outer two are then corrected, if they differ */
    const real more_first = share[0] - share[1];
    const real more_last = count > 1 ? share[2] - share[1] : 0;
    for (int64_t x = 0; x < bytes; x += AVERAGE_BLOCK) {
        int64_t at = x;
        if (x + AVERAGE_BLOCK > bytes && bytes >= AVERAGE_BLOCK)
            at = bytes - AVERAGE_BLOCK; /* overlaps the one before: nothing is read past the row */
        const int64_t width = bytes < AVERAGE_BLOCK ? bytes : AVERAGE_BLOCK;
        real *to = out + at;
        for (int64_t from = 0; from < count; from += AVERAGE_ROWS) {
            const int64_t rows = count - from < AVERAGE_ROWS ? count - from : AVERAGE_ROWS;
            const uint8_t *row = first + (size_t)from * step + at;
            uint16_t sum[AVERAGE_BLOCK];
            if (width == AVERAGE_BLOCK) {
                words16 low = {0}, high = {0}; /* every other byte: cheaper than widening them */
                for (int64_t i = 0; i < rows; i++, row += step) {
                    low += CONST_AT(words16, row) & 255;
                    high += CONST_AT(words16, row) >> 8;
                }
                for (int k = 0; k < AVERAGE_BLOCK / 2; k++) {
                    sum[2 * k + LNN_LOW_BYTE] = low[k];
                    sum[2 * k + 1 - LNN_LOW_BYTE] = high[k];
                }
            } else {
                memset(sum, 0, sizeof sum);
                for (int64_t i = 0; i < rows; i++, row += step)
                    for (int64_t k = 0; k < width; k++)
                        sum[k] = (uint16_t)(sum[k] + row[k]);
            }
            if (from == 0)
                for (int64_t k = 0; k < width; k++)
                    to[k] = share[1] * (real)sum[k];
            else
                for (int64_t k = 0; k < width; k++)
                    to[k] += share[1] * (real)sum[k];
        }
        if (more_first != 0 || more_last != 0)
            for (int64_t k = 0; k < width; k++)
                to[k] += more_first * (real)first[at + k] + more_last * (real)last[at + k];
    }
}

static void average_columns(const lnn_view *view, const real *row, int64_t plane, real *restrict out)
{
    const lnn_spans *spans = &view->columns;
    const int64_t source_channels = view->source_channels;
    const quad offset = CONST_AT(quad, view->offset);
    const quad red = CONST_AT(quad, view->mix), green = CONST_AT(quad, view->mix + 4);
    const quad blue = CONST_AT(quad, view->mix + 8), alpha = CONST_AT(quad, view->mix + 12);
    for (int64_t x = 0; x < spans->target; x++, out++) {
        /* always four channels at once: the row has room for it, what is too much is not used */
        const real *from = row + spans->first[x] * source_channels;
        const real *end = from + (spans->count[x] - 1) * source_channels;
        const real inner = spans->inner_share[x];
        quad sum = CONST_AT(quad, from) * spans->first_share[x];
        if (end != from) {
            quad between = {0};
            for (const real *p = from + source_channels; p < end; p += source_channels)
                between += CONST_AT(quad, p);
            sum += between * inner + CONST_AT(quad, end) * spans->last_share[x];
        }
        const quad mixed = offset + red * sum[0] + green * sum[1] + blue * sum[2] + alpha * sum[3];
        out[0] = mixed[0];
        if (view->channels == 3) {
            out[plane] = mixed[1];
            out[2 * plane] = mixed[2];
        }
    }
}

#include "kernels_cells.c"

const lnn_kernels LNN_VARIANT = {
    LNN_VARIANT_NAME, affine,      convolve,     neural_ltc,      synaptic_ltc,
    liquid_cell,      elementwise, average_rows, average_columns,
};
