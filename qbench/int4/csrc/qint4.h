/* Weights of 3, 4 and 8 bits on CPUs: what the files of this library share.

   A weight [N, K] is held in tiles of 16 rows. K is padded to Kp, a multiple of 32, N to a multiple of 16. A tile of 4
   bits is Kp / 8 blocks of 64 bytes; a block holds 8 columns of the 16 rows as 16 words of 32 bits, one a row. The nibbles of a
   word, from its lowest, are the columns 0 2 4 6 1 3 5 7: so shifting 16-bit lanes right by 4 p leaves the columns
   (2 p, 2 p + 1) of every row side by side, the order that products of pairs want, and shifting 32-bit lanes leaves one
   column of every row.

   Of 8 bits, a block of 8 columns is 128 bytes, [4][16][2]: pairs of neighbouring columns of each row, as signed bytes,
   which are codes less 128.

   Of 3 bits, a block of 32 columns is 192 bytes, [3][16] words of 32 bits: three words of each row. The lower halves hold
   the even columns, the upper halves the odd ones, so that here, too, pairs of neighbours lie side by side: five codes a
   half, from its lowest bit, and in its highest bit one of the three bits of the sixteenth code, the lowest in the first
   word (`CODE_OF_3`).

   Scales and zeros of a tile are [groups][2][16] values of 16 bits: of each group the scales of its 16 rows, then their
   zeros. A weight is s (q - 4) + z, s (q - 8) + z or s (q - 128) + z. Columns are worked off in segments, of
   which none crosses a group's end. */
#ifndef QINT4_H
#define QINT4_H

#include <stddef.h>
#include <stdint.h>

enum { ROWS = 16, BLOCK = 8, K_ALIGN = 32, MAX_SEGMENT = 128, AHEAD = 4096 /* bytes prefetched ahead */ };

/* Instruction sets, each including the ones before it. */
enum { GENERIC = 0, AVX2 = 1, AVX512 = 2, AVX512_VNNI = 3, AMX = 4 };

typedef struct {
    const uint32_t *words;  /* [tiles][kp / 8][16]; of 3 bits [tiles][kp / 32][3][16]; of 8, bytes [tiles][kp / 2][16][2] */
    const uint16_t *scales; /* [tiles][groups][2][16] */
    int scales_are_fp16;    /* else bfloat16 */
    int bits;               /* 3 or 4; 8 from AVX2 on */
    ptrdiff_t n, k, kp, groups, group_size;
} Weight;

/* x [m][k] times a weight, to y [m][n], both float32 or both bfloat16. */
typedef struct {
    Weight w;
    const void *x;
    void *y;
    int is_bf16;
    ptrdiff_t m, segment, segments; /* columns of a segment; the last may have fewer */
    /* What a product makes of x first, row by row (see `Prepare`). Rows of x are padded with zeros to kp columns. */
    float *sums;     /* [m][segments]: sums of x over a segment */
    float *floats;         /* [m][kp] */
    uint16_t *tiles;       /* bfloat16 [m / 16][kp / 32][16][32] */
    int8_t *limbs;         /* [kp / limbs_width][2][m][limbs_width], see limbs.h */
    int16_t *integers;     /* [kp / 8][m][8], see product_i16.c */
    int32_t *starts;       /* [m][segments]: what a sum over a segment begins with */
    float *steps;          /* [m][segments] */
    ptrdiff_t limbs_width;
} Product;

/* Works off [first, last) of what is counted. */
typedef void (*Range)(void *context, ptrdiff_t first, ptrdiff_t last);

/* Calls `work` over [0, count) in pieces, on so many threads of torch's own pool. */
void qint4_parallel(Range work, void *context, ptrdiff_t count, ptrdiff_t piece, int threads);

/* A product is two ranges: the first prepares rows of x, the second works off tiles of the weight. */
typedef struct {
    Range prepare, multiply;
    ptrdiff_t piece, longest; /* tiles that a thread takes at a time, see `piece_of` */
    size_t value_bytes;    /* of a value of x as prepared */
    ptrdiff_t limbs_width; /* the widest that it wants, if it wants limbs */
    ptrdiff_t most_rows;   /* of x at a time, if there is a limit: what is prepared stays in a cache */
} Method;

extern const Method f32_generic, i16_avx2, i16_vnni, bf16_amx_small, bf16_amx, bf16_amx_large;

/* Column c of a block of 32 that a row has in the words a, b and d of 3-bit codes; also of vectors of words. */
#define CODE_OF_3(a, b, d, c)                                                                                       \
    ((c) < 30 ? ((c) < 10 ? (a) : (c) < 20 ? (b) : (d)) >> ((c) % 2 * 16 + (c) / 2 % 5 * 3) & 7                      \
              : ((a) >> ((c) % 2 * 16 + 15) & 1) | ((b) >> ((c) % 2 * 16 + 14) & 2) | ((d) >> ((c) % 2 * 16 + 13) & 4))

/* What the middle code of 3 or 4 bits is. */
static inline int middle_of(const Weight *w) { return 1 << (w->bits - 1); }

/* The words of a tile from column k, a multiple of 32, on. */
static inline const uint32_t *words_at(const Weight *w, ptrdiff_t tile, ptrdiff_t k)
{
    return w->words + (tile * w->kp + k) * ROWS * w->bits / 32;
}

static inline ptrdiff_t segment_columns(const Product *p, ptrdiff_t g)
{
    ptrdiff_t left = p->w.kp - g * p->segment;
    return left < p->segment ? left : p->segment;
}

static inline const uint16_t *scales_at(const Weight *w, ptrdiff_t tile, ptrdiff_t k)
{
    return w->scales + (tile * w->groups + k / w->group_size) * 2 * ROWS;
}

static inline float bf16_to_float(uint16_t bits)
{
    union { uint32_t u; float f; } value = {(uint32_t)bits << 16};
    return value.f;
}

static inline uint16_t float_to_bf16(float f)
{
    union { float f; uint32_t u; } value = {f};
    return (uint16_t)((value.u + 0x7fff + (value.u >> 16 & 1)) >> 16);
}

/* Finite values only. */
static inline float fp16_to_float(uint16_t bits)
{
    union { uint32_t u; float f; } value = {(uint32_t)(bits & 0x7fff) << 13};
    return (bits & 0x8000 ? -0x1p112f : 0x1p112f) * value.f;
}

/* The power of two that makes the largest absolute value, given by its bits, at most 2^bits; NaN unless it is finite. */
static inline float step_of(uint32_t largest, int bits)
{
    union { uint32_t u; float f; } value;
    int exponent = (int)(largest >> 23) - (bits - 1);
    value.u = exponent > 255 - bits ? 0x7fc00000 : (uint32_t)(exponent < 1 ? 1 : exponent) << 23;
    return value.f;
}

/* The 16 scales or zeros at `from` as float32. */
static inline void load_scales(const Weight *w, const uint16_t *from, float *to)
{
    for (int i = 0; i < ROWS; i++)
        to[i] = w->scales_are_fp16 ? fp16_to_float(from[i]) : bf16_to_float(from[i]);
}

#endif
