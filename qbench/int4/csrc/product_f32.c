/* The product in float32 arithmetic, for every machine: the vectors are the compiler's. */
#include "qint4.h"

#include <string.h>

enum { M_BLOCK = 64 };

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

#define TARGET
#define NAME(name) name##_generic
#include "product_f32.inc"

#ifdef __x86_64__
#undef TARGET
#undef NAME
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define NAME(name) name##_avx2
#include "product_f32.inc"

#undef TARGET
#undef NAME
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512")))
#define NAME(name) name##_avx512
#include "product_f32.inc"
#endif
