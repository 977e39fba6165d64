/* The inner loops for x86-64-v3: AVX2 and FMA. The build needs no flags for it. */
#include "kernels.h"

#ifdef LNN_HAS_V3

#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
#endif

#define LNN_REGISTER 32
#define LNN_VARIANT lnn_kernels_v3
#define LNN_VARIANT_NAME "x86-64-v3"
#include "kernels.c"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int lnn_nothing_here; /* C99 forbids an empty file */
#endif
