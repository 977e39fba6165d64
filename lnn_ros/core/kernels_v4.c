/* The inner loops for x86-64-v4: AVX-512. The build needs no flags for it. */
#include "kernels.h"

#ifdef LNN_HAS_V4

#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi2,prefer-vector-width=256")
#endif

#define LNN_REGISTER 64
#define LNN_VARIANT lnn_kernels_v4
#define LNN_VARIANT_NAME "x86-64-v4"
#include "kernels.c"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int lnn_nothing_here; /* C99 forbids an empty file */
#endif
