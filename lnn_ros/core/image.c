/* From a message's bytes to the network's view, and the choice of inner loops. */
#include "kernels.h"

size_t lnn_view_scratch(const lnn_view *view)
{
    /* average_columns reads four channels at once, up to three past the last pixel's first */
    return (size_t)(view->source_width * view->source_channels) + 4;
}

void lnn_see(const lnn_view *view, const lnn_kernels *kernels, const uint8_t *image, size_t step,
             real *scratch, real *pixels)
{
    const lnn_spans *rows = &view->rows;
    const int64_t width = view->columns.target, plane = rows->target * width;
    int copied = 1; /* an image that has the network's width already: one cell each */
    for (int64_t x = 0; x < width; x++)
        copied &= view->columns.first[x] == x && view->columns.count[x] == 1 &&
                  view->columns.first_share[x] == 1;
    for (int64_t y = 0; y < rows->target; y++) {
        const real share[3] = {rows->first_share[y], rows->inner_share[y], rows->last_share[y]};
        kernels->average_rows(image + (size_t)rows->first[y] * step, step, rows->count[y], share,
                              view->source_width * view->source_channels, scratch);
        kernels->average_columns(view, scratch, plane, copied, pixels + y * width);
    }
}

const lnn_kernels *lnn_kernels_at(int index)
{
    if (index == 0)
        return &lnn_kernels_baseline;
#ifdef LNN_HAS_V3
    if (index == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2"))
        return &lnn_kernels_v3;
#endif
#ifdef LNN_HAS_V4
    if (index == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &lnn_kernels_v4;
#endif
    return NULL;
}

const lnn_kernels *lnn_best_kernels(void)
{
    const lnn_kernels *best = lnn_kernels_at(0);
    for (int i = 1; lnn_kernels_at(i); i++)
        best = lnn_kernels_at(i);
    return best;
}

const char *lnn_kernels_name(const lnn_kernels *kernels)
{
    return kernels->name;
}

void lnn_elementwise(const lnn_kernels *kernels, int function, int64_t count, const real *x,
                     real *out)
{
    kernels->elementwise(function, count, x, out);
}
