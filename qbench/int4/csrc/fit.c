/* The search of qbench/int4/fit.py, group after group, each in the first cache. */
#include "qint4.h"

#include <math.h>

typedef struct {
    const float *groups; /* [count][size] */
    ptrdiff_t size;
    int bits, symmetric, fp16, starts, refits;
    const float (*start)[2];        /* [starts] of part and place */
    const float *plain_s, *plain_z; /* [count] */
    float *s, *z;                   /* [count] */
} Fit;

/* Sums over runs of so many are float32, longer ones double: a group may be a whole tensor. */
enum { RUN = 1024 };

typedef struct { double q, qq, qw; } Sums;
typedef struct { double error; float s, z; } Best;

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

/* Sums of v q, v q^2 and v q w, with v = rms + |w|. */
static inline __attribute__((always_inline)) Sums sums_of(const float *w, ptrdiff_t n, float rms, float s, float z,
                                                          float middle)
{
    const float inverse = s == 0 ? 0 : 1 / s;
    Sums sums = {0, 0, 0};
    for (ptrdiff_t from = 0; from < n; from += RUN) {
        ptrdiff_t end = n - from < RUN ? n : from + RUN;
        float q = 0, qq = 0, qw = 0;
#pragma omp simd reduction(+ : q, qq, qw)
        for (ptrdiff_t i = from; i < end; i++) {
            float c = code(w[i], inverse, z, -middle, middle - 1);
            float vc = (rms + fabsf(w[i])) * c;
            q += vc;
            qq += vc * c;
            qw += vc * w[i];
        }
        sums = (Sums){sums.q + q, sums.qq + qq, sums.qw + qw};
    }
    return sums;
}

static inline __attribute__((always_inline)) double error_of(const float *w, ptrdiff_t n, float s, float z, float middle)
{
    const float inverse = s == 0 ? 0 : 1 / s;
    double sum = 0;
    for (ptrdiff_t from = 0; from < n; from += RUN) {
        ptrdiff_t end = n - from < RUN ? n : from + RUN;
        float run = 0;
#pragma omp simd reduction(+ : run)
        for (ptrdiff_t i = from; i < end; i++) {
            float d = s * code(w[i], inverse, z, -middle, middle - 1) + z - w[i];
            run += d * d;
        }
        sum += run;
    }
    return sum;
}

/* Of a group, with the same weights. */
typedef struct { double v, sum, squares; float rms; } Total;

static inline void compare(Best *best, float s, float z, Sums c, const Total *t)
{
    double error = t->squares - 2 * (s * c.qw + z * t->sum) + (double)s * s * c.qq + z * (2 * s * c.q + t->v * z);
    if (error < best->error) *best = (Best){error, s, z};
}

static inline __attribute__((always_inline)) void try_and_refit(const Fit *f, const float *w, const Total *t, Best *best,
                                                                float s, float z)
{
    Sums c = sums_of(w, f->size, t->rms, s, z, (float)(1 << (f->bits - 1)));
    compare(best, s, z, c, t);
    if (f->symmetric) {
        if (c.qq > 0) s = stored((float)(c.qw / c.qq), f->fp16);
    } else {
        double variance = t->v * c.qq - c.q * c.q;
        if (variance > 0) s = stored((float)((t->v * c.qw - c.q * t->sum) / variance), f->fp16);
        if (t->v > 0) z = stored((float)((t->sum - s * c.q) / t->v), f->fp16);
    }
    compare(best, s, z, c, t);
}

static inline __attribute__((always_inline)) Total total_of(const float *w, ptrdiff_t n)
{
    double squares = 0, v = 0, sum = 0, weighted_squares = 0;
#pragma omp simd reduction(+ : squares)
    for (ptrdiff_t i = 0; i < n; i++) squares += (double)w[i] * w[i];
    const float rms = (float)sqrt(squares / (double)n);
#pragma omp simd reduction(+ : v, sum, weighted_squares)
    for (ptrdiff_t i = 0; i < n; i++) {
        double vi = rms + fabsf(w[i]);
        v += vi;
        sum += vi * w[i];
        weighted_squares += vi * w[i] * w[i];
    }
    return (Total){v, sum, weighted_squares, rms};
}

static inline __attribute__((always_inline)) void fit_groups(const Fit *f, ptrdiff_t first, ptrdiff_t last)
{
    const float middle = (float)(1 << (f->bits - 1));
    for (ptrdiff_t g = first; g < last; g++) {
        const float *w = f->groups + g * f->size;
        const float plain_s = f->plain_s[g], plain_z = f->plain_z[g];
        const Total t = total_of(w, f->size);
        Best best = {INFINITY, plain_s, plain_z};
        for (int i = 0; i < f->starts; i++) {
            float part = f->start[i][0], place = f->start[i][1], s = stored(plain_s * part, f->fp16);
            float centre = plain_z - plain_s / 2 + plain_s * (middle - 0.5f) * (1 - part) * place;
            if (!f->symmetric) try_and_refit(f, w, &t, &best, s, stored(centre + s / 2, f->fp16));
            else if (place == 0) try_and_refit(f, w, &t, &best, s, 0);
        }
        for (int r = 0; r < f->refits; r++) try_and_refit(f, w, &t, &best, best.s, best.z);
        /* The unweighted error may not grow. */
        if (error_of(w, f->size, best.s, best.z, middle) > error_of(w, f->size, plain_s, plain_z, middle)) {
            best.s = plain_s;
            best.z = plain_z;
        }
        f->s[g] = best.s;
        f->z[g] = best.z;
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
               const float *start, int starts, int refits, const float *plain_s, const float *plain_z, float *s,
               float *z, int threads)
{
    Fit fit = {groups, size, bits, symmetric, fp16, starts, refits, (const float (*)[2])start, plain_s, plain_z, s, z};
    Range work = fit_generic;
#if defined(__x86_64__)
    if (level >= AVX512) work = fit_avx512;
    else if (level >= AVX2) work = fit_avx2;
#endif
    qint4_parallel(work, &fit, count, 1 + 16384 / size, threads);
}
