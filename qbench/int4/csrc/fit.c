/* The search of qbench/int4/fit.py, group after group, each in the first cache. */
#include "qint4.h"

#include <math.h>

typedef struct {
    const float *groups; /* [count][size] */
    ptrdiff_t size;
    int bits, symmetric, fp16, refits, ranges;
    const float *parts;      /* [ranges] */
    const float *plain_s, *plain_z; /* [count] */
    float *s, *z;            /* [count] */
    uint8_t *codes;          /* [count][size] */
} Fit;

typedef struct { float q, qq, qw; } Sums;
typedef struct { float error, s, z; } Best;

static inline float stored(float f, int fp16)
{
    union { float f; uint32_t u; } value = {f};
    if (!fp16) {
        value.u = (uint32_t)float_to_bf16(f) << 16;
        return value.f;
    }
    if (fabsf(f) < 0x1p-14f) return copysignf((fabsf(f) + 0.75f) - 0.75f, f);
    value.u = (value.u + 0xfff + (value.u >> 13 & 1)) & ~0x1fffu;
    return fabsf(value.f) > 65504.0f ? copysignf(INFINITY, f) : value.f;
}

static inline __attribute__((always_inline)) float code(float w, float inverse, float z, float low, float high)
{
    float t = (w - z) * inverse;
    t = t < low ? low : t;
    t = t > high ? high : t;
    return (t + 0x1.8p23f) - 0x1.8p23f; /* the nearest integer, ties to even */
}

static inline __attribute__((always_inline)) Sums sums_of(const float *w, ptrdiff_t n, float s, float z, float middle)
{
    float inverse = s == 0 ? 0 : 1 / s, q = 0, qq = 0, qw = 0;
#pragma omp simd reduction(+ : q, qq, qw)
    for (ptrdiff_t i = 0; i < n; i++) {
        float c = code(w[i], inverse, z, -middle, middle - 1);
        q += c;
        qq += c * c;
        qw += c * w[i];
    }
    return (Sums){q, qq, qw};
}

static inline __attribute__((always_inline)) float error_of(const float *w, ptrdiff_t n, float s, float z, float middle)
{
    float inverse = s == 0 ? 0 : 1 / s, sum = 0;
#pragma omp simd reduction(+ : sum)
    for (ptrdiff_t i = 0; i < n; i++) {
        float d = s * code(w[i], inverse, z, -middle, middle - 1) + z - w[i];
        sum += d * d;
    }
    return sum;
}

static inline void weigh(Best *best, float s, float z, Sums c, float squares, float sum, float n)
{
    float error = squares - 2 * (s * c.qw + z * sum) + s * s * c.qq + z * (2 * s * c.q + n * z);
    if (error < best->error) *best = (Best){error, s, z};
}

static inline __attribute__((always_inline)) void try_and_refit(const Fit *f, const float *w, float squares, float sum,
                                                                Best *best, float s, float z)
{
    float n = (float)f->size;
    Sums c = sums_of(w, f->size, s, z, (float)(1 << (f->bits - 1)));
    weigh(best, s, z, c, squares, sum, n);
    if (f->symmetric) {
        if (c.qq > 0) s = stored(c.qw / c.qq, f->fp16);
    } else {
        float variance = n * c.qq - c.q * c.q;
        if (variance > 0) s = stored((n * c.qw - c.q * sum) / variance, f->fp16);
        z = stored((sum - s * c.q) / n, f->fp16);
    }
    weigh(best, s, z, c, squares, sum, n);
}

static inline __attribute__((always_inline)) void fit_groups(const Fit *f, ptrdiff_t first, ptrdiff_t last)
{
    const float middle = (float)(1 << (f->bits - 1));
    for (ptrdiff_t g = first; g < last; g++) {
        const float *w = f->groups + g * f->size;
        const float plain_s = f->plain_s[g], plain_z = f->plain_z[g];
        float squares = 0, sum = 0;
#pragma omp simd reduction(+ : squares, sum)
        for (ptrdiff_t i = 0; i < f->size; i++) {
            sum += w[i];
            squares += w[i] * w[i];
        }
        Best best = {INFINITY, plain_s, plain_z};
        for (int r = 0; r < f->ranges; r++) {
            float s = stored(plain_s * f->parts[r], f->fp16);
            float z = f->symmetric ? 0 : stored(plain_z - plain_s / 2 + s / 2, f->fp16);
            try_and_refit(f, w, squares, sum, &best, s, z);
        }
        for (int r = 0; r < f->refits; r++) try_and_refit(f, w, squares, sum, &best, best.s, best.z);
        /* Errors from sums lose digits; what is promised of them is checked on the weights. */
        if (error_of(w, f->size, best.s, best.z, middle) > error_of(w, f->size, plain_s, plain_z, middle)) {
            best.s = plain_s;
            best.z = plain_z;
        }
        f->s[g] = best.s;
        f->z[g] = best.z;
        float inverse = best.s == 0 ? 0 : 1 / best.s;
#pragma omp simd
        for (ptrdiff_t i = 0; i < f->size; i++)
            f->codes[g * f->size + i] = (uint8_t)(int)(code(w[i], inverse, best.z, -middle, middle - 1) + middle);
    }
}

static void fit_generic(void *fit, ptrdiff_t first, ptrdiff_t last) { fit_groups(fit, first, last); }

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void fit_avx2(void *fit, ptrdiff_t first, ptrdiff_t last)
{
    fit_groups(fit, first, last);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512"))) static void
fit_avx512(void *fit, ptrdiff_t first, ptrdiff_t last)
{
    fit_groups(fit, first, last);
}
#endif

void qint4_fit(int level, const float *groups, ptrdiff_t count, ptrdiff_t size, int bits, int symmetric, int fp16,
               const float *parts, int ranges, int refits, const float *plain_s, const float *plain_z, float *s,
               float *z, uint8_t *codes, int threads)
{
    Fit fit = {groups, size, bits, symmetric, fp16, refits, ranges, parts, plain_s, plain_z, s, z, codes};
    Range work = fit_generic;
#if defined(__x86_64__)
    if (level >= AVX512) work = fit_avx512;
    else if (level >= AVX2) work = fit_avx2;
#endif
    qint4_parallel(work, &fit, count, 1 + 16384 / size, threads);
}
