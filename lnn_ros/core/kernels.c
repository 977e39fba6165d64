/* The inner loops for any processor; kernels_v3.c and kernels_v4.c compile this file again. */
#include "kernels.h"

#include "elementary.h"

#ifndef LNN_VARIANT
#define LNN_VARIANT lnn_kernels_baseline
#define LNN_VARIANT_NAME "baseline"
#endif

/* GCC's vector types: one register where the processor has it, else several. Unaligned. */
typedef real lanes __attribute__((vector_size(LNN_LANES * sizeof(real)), aligned(sizeof(real)),
                                  may_alias));
typedef real quad __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef uint16_t words16 __attribute__((vector_size(32), aligned(1), may_alias));

#define AT(type, pointer) (*(type *)(pointer))
#define CONST_AT(type, pointer) (*(const type *)(pointer))

/* A register of this variant: GCC takes a wider vector apart through memory, and the sums of a
 * product are to stay where they are. Eight sums, or each would wait for itself. */
#ifndef LNN_REGISTER
#define LNN_REGISTER 16
#endif
enum { VECTOR = LNN_REGISTER / sizeof(real), SUMS = 8 };
typedef real vector __attribute__((vector_size(LNN_REGISTER), aligned(sizeof(real)), may_alias));
/* the same for maps, whose outputs come by LNN_LANES */
#define LNN_NARROW (LNN_REGISTER < LNN_LANES * (int)sizeof(real) ? LNN_REGISTER : 32)
enum { NARROW = LNN_NARROW / sizeof(real) };
typedef real narrow __attribute__((vector_size(LNN_NARROW), aligned(sizeof(real)), may_alias));
/* what comparing two of them gives: all bits set or none */
typedef __typeof__((vector){0} < (vector){0}) mask;

/* `width` outputs: the sums stay in registers as it is a constant. */
static inline __attribute__((always_inline)) void
affine_block(int64_t inputs, const real *w, const real *bias, const real *x, real *restrict out,
             const int width)
{
    const int vectors = width / NARROW, chains = vectors < SUMS ? SUMS / vectors : 1;
    narrow sum[LNN_BLOCK / NARROW > SUMS ? LNN_BLOCK / NARROW : SUMS];
    for (int k = 0; k < vectors * chains; k++)
        sum[k] = k < vectors ? CONST_AT(narrow, bias + k * NARROW) : (narrow){0};
    int64_t j = 0;
    for (; j + chains <= inputs; j += chains, w += chains * width)
        for (int k = 0; k < vectors * chains; k++)
            sum[k] += CONST_AT(narrow, w + k * NARROW) * x[j + k / vectors];
    for (; j < inputs; j++, w += width)
        for (int k = 0; k < vectors; k++)
            sum[k] += CONST_AT(narrow, w + k * NARROW) * x[j];
    for (int k = vectors; k < vectors * chains; k++)
        sum[k % vectors] += sum[k];
    for (int k = 0; k < vectors; k++)
        AT(narrow, out + k * NARROW) = sum[k];
}

static void affine(const lnn_map *map, const real *bias, const real *x, real *restrict out)
{
    const int64_t inputs = map->inputs;
    const real *w = map->weight;
    int64_t i = 0;
    for (; i + LNN_BLOCK <= map->outputs; i += LNN_BLOCK)
        affine_block(inputs, w + i * inputs, bias + i, x, out + i, LNN_BLOCK);
    for (; i < map->outputs; i += LNN_LANES)
        affine_block(inputs, w + i * inputs, bias + i, x, out + i, LNN_LANES);
}

/* ReLU, then as many of the lanes as there are channels. */
static inline void store_rectified(vector sum, real *out, int64_t channels)
{
    /* not < 0 instead of > 0: a NaN stays one */
    const vector value = (vector)((mask)sum & ~(sum < 0));
    if (channels >= VECTOR)
        AT(vector, out) = value;
    else if (channels == VECTOR / 2)
        memcpy(out, &value, sizeof value / 2);
    else
        for (int64_t k = 0; k < channels; k++)
            out[k] = value[k];
}

/* A row of outputs: blocks of `pixels` neighbours by `vectors` of channels. Their sums, at most
 * SUMS, stay in registers as these two are constants; several, or each would wait for itself. */
static inline __attribute__((always_inline)) void
convolve_row(const lnn_convolution_plan *plan, const real *in, const real *weight,
             const real *bias, real *out, int64_t channels, const int pixels, const int vectors)
{
    const int64_t taps = plan->taps, *offset = plan->offset, pixel = plan->pixel;
    for (int64_t x = 0; x < plan->columns; x += pixels) {
        /* the last block may overlap the one before: the same numbers once more */
        const int64_t at = x + pixels <= plan->columns ? x : plan->columns - pixels;
        const real *w = weight, *corner = in + at * pixel;
        vector sum[SUMS];
        for (int k = 0; k < pixels * vectors; k++)
            sum[k] = CONST_AT(vector, bias + k / pixels * VECTOR);
        int64_t t = 0;
        if (vectors == 1 && plan->overlaps) /* loads limit this: what two pixels see is read once */
            for (; t < taps; t += 3, w += 3 * LNN_PANEL) {
                const real *outer = corner + offset[t], *middle = corner + offset[t + 1];
                for (int k = 0; k < pixels; k++) {
                    sum[k] += CONST_AT(vector, w) * outer[k * pixel];
                    sum[k] += CONST_AT(vector, w + LNN_PANEL) * middle[k * pixel];
                    sum[k] += CONST_AT(vector, w + 2 * LNN_PANEL) * outer[(k + 1) * pixel];
                }
            }
        for (; t < taps; t++, w += LNN_PANEL) {
            const real *from = corner + offset[t];
            for (int k = 0; k < pixels * vectors; k++)
                sum[k] += CONST_AT(vector, w + k / pixels * VECTOR) * from[k % pixels * pixel];
        }
        for (int k = 0; k < pixels * vectors; k++)
            store_rectified(sum[k], out + (at + k % pixels) * plan->channels + k / pixels * VECTOR,
                            channels - k / pixels * VECTOR);
    }
}

static void convolve(const lnn_convolution_plan *plan, const real *in, real *out)
{
    for (int64_t first = 0; first < plan->channels; first += LNN_PANEL) {
        const real *weight = plan->weight + first * plan->taps, *bias = plan->bias + first;
        const int64_t channels = plan->channels - first;
        int vectors = 1, pixels = 1;
        while (vectors * VECTOR < LNN_PANEL && vectors * VECTOR < channels)
            vectors *= 2;
        while (2 * pixels * vectors <= SUMS && 2 * pixels <= plan->columns)
            pixels *= 2;
        for (int64_t y = 0; y < plan->rows; y++) {
            const real *from = in + y * plan->row;
            real *to = out + y * plan->out_row + first;
#define CASE(p, v)                                                              \
    case 16 * (p) + (v):                                                        \
        if ((v) * VECTOR <= LNN_PANEL) /* or this variant has no such case */   \
            convolve_row(plan, from, weight, bias, to, channels, p, v);         \
        break
            switch (16 * pixels + vectors) {
                CASE(8, 1);
                CASE(4, 1);
                CASE(2, 1);
                CASE(1, 1);
                CASE(4, 2);
                CASE(2, 2);
                CASE(1, 2);
                CASE(2, 4);
                CASE(1, 4);
                CASE(1, 8);
            }
#undef CASE
        }
    }
}

static int copy_finite(int64_t count, const real *x, real *restrict out)
{
    lanes odd = {0}; /* x - x is 0, and NaN for NaN and the infinities */
    int64_t i = 0;
    for (; i + LNN_LANES <= count; i += LNN_LANES) {
        const lanes value = CONST_AT(lanes, x + i);
        AT(lanes, out + i) = value;
        odd += value - value;
    }
    for (; i < count; i++) {
        out[i] = x[i];
        odd[0] += x[i] - x[i];
    }
    int good = 1;
    for (int k = 0; k < LNN_LANES; k++)
        good &= odd[k] == 0;
    return good;
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
            /* f = gain sigmoid(...); h <- h + (equilibrium - h) (1 - exp(-dt (1 + f) / tau)) */
            const real f = plan->gain[i] * lnn_sigmoid(gate[i]);
            const real opening = 1 + f;
            const real equilibrium = (current[i] + f * plan->reversal[i]) / opening;
            state[i] += (equilibrium - state[i]) * lnn_released(dt * plan->rate[i] * opening);
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
    else if (function == LNN_SOFTPLUS)
        for (int64_t i = 0; i < count; i++)
            out[i] = lnn_softplus(x[i]);
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
    if (count == 1) {
        for (int64_t k = 0; k < bytes; k++)
            out[k] = share[0] * (real)first[k];
        return;
    }
    const uint8_t *last = first + (size_t)(count - 1) * step;
    /* every row counts with the inner share; the outer two are then corrected, if they differ */
    const real more_first = share[0] - share[1];
    const real more_last = share[2] - share[1];
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

/* The average of four channels at once: the row has room for it, what is too much is not used. By
 * address: without AVX a vector of four doubles has no agreed way to be returned. */
static inline __attribute__((always_inline)) void
average_pixel(const lnn_view *view, const real *row, int64_t x, const int copied, quad *mean)
{
    const lnn_spans *spans = &view->columns;
    const int64_t channels = view->source_channels;
    if (copied) {
        *mean = CONST_AT(quad, row + x * channels);
        return;
    }
    const real *from = row + spans->first[x] * channels;
    const real *end = from + (spans->count[x] - 1) * channels;
    quad sum = CONST_AT(quad, from) * spans->first_share[x];
    if (end != from) {
        quad between = {0};
        for (const real *p = from + channels; p < end; p += channels)
            between += CONST_AT(quad, p);
        sum += between * spans->inner_share[x] + CONST_AT(quad, end) * spans->last_share[x];
    }
    *mean = sum;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef lnn_bits quad_index __attribute__((vector_size(4 * sizeof(real))));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (quad_index){__VA_ARGS__})
#endif

/* See average_columns; the two constants, and whatever they make needless, vanish. */
static inline __attribute__((always_inline)) void
average_into(const lnn_view *view, const real *row, int64_t plane, real *restrict out,
             const int channels, const int copied)
{
    const int64_t target = view->columns.target;
    quad mix[3][5]; /* of each channel: how red, green, blue and alpha count, and the offset */
    for (int c = 0; c < channels; c++)
        for (int s = 0; s < 5; s++)
            mix[c][s] = (quad){0} + (s < 4 ? view->mix[4 * s + c] : view->offset[c]);
    for (int64_t x = 0; x < target; x += 4, out += 4) {
        const int64_t last = target - 1, left = target - x;
        quad p0, p1, p2, p3;
        average_pixel(view, row, x, copied, &p0);
        average_pixel(view, row, left > 1 ? x + 1 : last, copied, &p1);
        average_pixel(view, row, left > 2 ? x + 2 : last, copied, &p2);
        average_pixel(view, row, left > 3 ? x + 3 : last, copied, &p3);
        /* four pixels' channels to four channels' pixels */
        const quad even = SHUFFLE(p0, p2, 0, 4, 1, 5), even_rest = SHUFFLE(p0, p2, 2, 6, 3, 7);
        const quad odd = SHUFFLE(p1, p3, 0, 4, 1, 5), odd_rest = SHUFFLE(p1, p3, 2, 6, 3, 7);
        const quad red = SHUFFLE(even, odd, 0, 4, 1, 5), green = SHUFFLE(even, odd, 2, 6, 3, 7);
        const quad blue = SHUFFLE(even_rest, odd_rest, 0, 4, 1, 5);
        const quad alpha = SHUFFLE(even_rest, odd_rest, 2, 6, 3, 7);
        for (int c = 0; c < channels; c++) {
            const quad value = red * mix[c][0] + green * mix[c][1] + blue * mix[c][2] +
                               (alpha * mix[c][3] + mix[c][4]);
            if (left >= 4)
                AT(quad, out + c * plane) = value;
            else
                for (int64_t k = 0; k < left; k++)
                    out[c * plane + k] = value[k];
        }
    }
}

static void average_columns(const lnn_view *view, const real *row, int64_t plane, int copied,
                            real *restrict out)
{
    if (view->channels == 3 && copied)
        average_into(view, row, plane, out, 3, 1);
    else if (view->channels == 3)
        average_into(view, row, plane, out, 3, 0);
    else
        average_into(view, row, plane, out, 1, 0);
}

#include "kernels_cells.c"

/* long loops over samples: the only ones that GCC is to make 64 bytes wide by itself */
#if LNN_REGISTER == 64 && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("prefer-vector-width=512")
#include "kernels_scan.c"
#pragma GCC pop_options
#else
#include "kernels_scan.c"
#endif

const lnn_kernels LNN_VARIANT = {
    LNN_VARIANT_NAME, affine,      convolve,      copy_finite,   neural_ltc,    synaptic_ltc,
    liquid_cell,      liquid_scan, liquid_back,   neural_back,   synaptic_scan, synaptic_back,
    open_synapses,    open_synapses_back,         elementwise,   average_rows,  average_columns,
};
