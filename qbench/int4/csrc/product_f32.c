/* The product in float32 arithmetic, for every machine and for AVX-512: the vectors are the compiler's. */
#include "qint4.h"

#include <string.h>

enum { M_BLOCK = 64, M_REGISTERS = 4 };

#define TARGET
#define VECTOR 16
#define NAME(name) name##_generic
#include "product_f32.inc"

#ifdef __x86_64__
#undef TARGET
#undef VECTOR
#undef NAME
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512")))
#define VECTOR 64
#define NAME(name) name##_avx512
#include "product_f32.inc"
#endif
