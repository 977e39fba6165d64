/* The inner loops, compiled once per kind of processor; engine.c and image.c call them.
 *
 * Another cell is: a plan and a loop here (kernels_cells.c), its tables in core.h's policy, and
 * where engine.c lays out, packs and advances those that there are. */
#ifndef LNN_KERNELS_H
#define LNN_KERNELS_H

#include "core.h"

enum {
    LNN_LANES = 8,             /* every vector of outputs is padded to a multiple of it */
    LNN_BLOCK = 4 * LNN_LANES, /* outputs that one pass over the inputs computes */
    LNN_PANEL = 16,            /* channels that one pass of a convolution computes */
    LNN_GROUP = 16,            /* targets whose synapses one pass opens */
};

static inline int64_t lnn_padded(int64_t count)
{
    return (count + LNN_LANES - 1) / LNN_LANES * LNN_LANES;
}

static inline int64_t lnn_groups(int64_t targets)
{
    return (targets + LNN_GROUP - 1) / LNN_GROUP;
}

/* Where the weight of (output, input) lies: blocks of LNN_BLOCK outputs, then blocks of LNN_LANES;
 * inside a block the outputs of one input stand together. `outputs` is a multiple of LNN_LANES. */
static inline int64_t lnn_weight_at(int64_t output, int64_t input, int64_t outputs, int64_t inputs)
{
    const int64_t whole = outputs / LNN_BLOCK * LNN_BLOCK;
    const int64_t wide = output < whole ? LNN_BLOCK : LNN_LANES;
    return output / wide * wide * inputs + input * wide + output % wide;
}

/* An affine map with packed weights; the bias may change from call to call. */
typedef struct {
    int64_t inputs, outputs; /* outputs padded */
    real *weight, *bias;
} lnn_map;

/* One convolution. Its input carries its zero padding; the output, channels last, goes to the
 * inside of the next layer's input. Weights: [outputs / panel][tap][panel], zeros past the last. */
typedef struct {
    int64_t channels, rows, columns, taps;
    int64_t pixel, row, out_row; /* reals from one output's window to the next, in the input */
    int64_t *offset;             /* of each tap in the window */
    int overlaps; /* kernel 3, stride 2: the last tap of a row is the first of the next pixel's */
    real *weight, *bias;
} lnn_convolution_plan;

typedef struct {
    int64_t lanes; /* padded units */
    lnn_map recurrent;
    real *gain, *reversal, *rate;
} lnn_neural_ltc_plan;

/* Largest exponents, in size, of the inner loops' powers of 2. */
#ifdef LNN_DOUBLE
#define LNN_EXP2_MOST 1020.0
#else
#define LNN_EXP2_MOST 124.0f
#endif

/* Synapses sorted by target: those into target i are begin[i] ... begin[i + 1]. */
typedef struct {
    int64_t targets, sources;
    int64_t *begin, *source; /* begin: (targets + 2), of which one is scratch */
    real *steep, *sigma, *mu, *w, *current; /* steep = -sigma / ln 2, current = w erev */
    real reach; /* sources within -reach ... reach keep exponents within LNN_EXP2_MOST */
    real *sums; /* that the gradients are added up in: LNN_SUMS in turn, LNN_LANES per synapse */
} lnn_wired;

/* Sorts by target; fills everything but `sums`. */
void lnn_wire(lnn_wired *wired, const lnn_synapses *synapses);

/* as wide as a real: processors permute registers by such */
#ifdef LNN_DOUBLE
typedef int64_t lnn_place;
#else
typedef int32_t lnn_place;
#endif

/* Synapses in groups of LNN_GROUP targets. A slot has one into each target of its group, or, where
 * there is none, one that conducts nothing; begin[g] ... begin[g + 1] are those of group g. Where
 * most targets have the same sources, the synapses of a slot share one, and need not look up each
 * its own. */
typedef struct {
    int64_t sources, groups;
    int64_t *begin, *is_shared;     /* (groups + 1), (groups) */
    lnn_place *source;              /* (slots, LNN_GROUP) */
    real *numbers;                  /* (slots, LNN_NUMBERS, LNN_GROUP): as in lnn_wired */
    real reach;                     /* as in lnn_wired */
    int64_t *degree, *slot; /* scratch: (targets, whole groups), (groups, sources) */
} lnn_bundle;

enum { LNN_MU, LNN_STEEP, LNN_W, LNN_CURRENT, LNN_NUMBERS };

/* Slots that so many synapses take at most, when no two have the same source and target. */
int64_t lnn_most_slots(int64_t count, int64_t sources, int64_t groups);

/* Fills what a bundle has place for; 0 when two synapses have the same source and target. */
int lnn_bundle_up(lnn_bundle *bundle, const lnn_synapses *synapses);

/* of_w = CONDUCTED + erev DRIVEN, of_erev = w DRIVEN, of_sigma = TILTED, of_mu = -sigma MOVED */
enum { LNN_CONDUCTED, LNN_DRIVEN, LNN_MOVED, LNN_TILTED, LNN_SUMS };

enum { LNN_WIDE = 4 * LNN_LANES }; /* samples that the synaptic form takes side by side */

typedef struct {
    int64_t lanes, seen; /* lanes: whole groups; seen: inputs, which drive it as they are */
    int is_fused;
    lnn_bundle sensory, synapses;
    real *gl, *leak, *cm;
} lnn_synaptic_plan;

typedef struct {
    int64_t lanes, seen;
    lnn_map tau, hidden, out;
} lnn_liquid_plan;

/* A scan laid out for the inner loops, and their scratch memory. */
typedef struct {
    const lnn_scan *scan;
    const lnn_of_scan *of; /* forward: NULL */
    lnn_neural_ltc_plan neural;
    lnn_map transposed;
    real *of_weight, *of_gain, *of_reversal, *of_rate; /* padded */
    real *driven, *gate, *state, *adjoint, *terms, *into, *before;
    lnn_wired wired;
    real *opened, *tiles;
} lnn_scan_plan;

/* Sub-steps whose outer products are added to the gradient of the neural weights at once. */
enum { LNN_OUTER = 8 };

struct lnn_kernels {
    const char *name;
    /* out = bias + weight x */
    void (*affine)(const lnn_map *map, const real *bias, const real *x, real *out);
    void (*convolve)(const lnn_convolution_plan *plan, const real *in, real *out);
    /* 0 when one of the numbers is not finite; copied they are all the same */
    int (*copy_finite)(int64_t count, const real *x, real *out);
    /* `steps` sub-steps of `dt` seconds. The input's part of the gate and of the current, 2 lanes
     * long, goes evenly from `from` to `to`, which may be the same; work: 3 lanes. */
    void (*neural_ltc)(const lnn_neural_ltc_plan *plan, const real *from, const real *to,
                       real *state, real *work, int64_t steps, real dt);
    /* The same for cells that are driven by their input itself; work: 4 lanes + seen, padded. */
    void (*synaptic_ltc)(const lnn_synaptic_plan *plan, const real *from, const real *to,
                         real *state, real *work, int64_t steps, real dt);
    void (*liquid_cell)(const lnn_liquid_plan *plan, const real *from, const real *to, real *state,
                        real *work, int64_t steps, real dt);
    /* sample `first`, or `count` samples from it on; the backward ones add to the gradients */
    void (*liquid_scan)(const lnn_scan_plan *plan, int64_t first);
    void (*liquid_back)(const lnn_scan_plan *plan, int64_t first);
    void (*neural_back)(const lnn_scan_plan *plan, int64_t first);
    void (*synaptic_scan)(const lnn_scan_plan *plan, int64_t first, int64_t count);
    void (*synaptic_back)(const lnn_scan_plan *plan, int64_t first, int64_t count);
    /* rows `first` ... `first + count`, at most LNN_WIDE; tiles: (sources + 2 targets) LNN_WIDE */
    void (*open)(const lnn_wired *wired, int64_t count, const real *x, const real *base, real *out,
                 real *opened, real *tiles);
    void (*open_back)(const lnn_wired *wired, int64_t count, const real *x, const real *of_out,
                      real *of_x, real *of_base, real *opened, real *tiles);
    void (*elementwise)(int function, int64_t count, const real *x, real *out);
    /* rows of bytes averaged into one row of reals */
    void (*average_rows)(const uint8_t *first, size_t step, int64_t count, const real share[3],
                         int64_t bytes, real *out);
    /* a row of reals, `source_channels` a pixel, averaged, mixed and normalised into one row of
     * each channel, `plane` reals apart; copied: every pixel is its own average */
    void (*average_columns)(const lnn_view *view, const real *row, int64_t plane, int copied,
                            real *out);
};

enum { LNN_EXP, LNN_SIGMOID, LNN_TANH, LNN_RELU, LNN_SILU, LNN_SOFTPLUS };

extern const lnn_kernels lnn_kernels_baseline;
#if defined(__x86_64__)
#define LNN_HAS_V3 1
#define LNN_HAS_V4 1
extern const lnn_kernels lnn_kernels_v3, lnn_kernels_v4;
#endif

#endif
