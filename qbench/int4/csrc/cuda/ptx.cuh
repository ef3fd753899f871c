// The instructions that the kernels are made of, one function each. Nothing else here knows that it runs on a GPU: the
// tests compile the kernels for the CPU over functions of the same names.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

// Dynamic shared memory, as long as the launch says.
DEVICE char *shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// Loads of what is read once: past the first cache, two sectors at a time.
DEVICE uint4 load_once(const uint4 *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

DEVICE uint2 load_once(const uint2 *p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

DEVICE u32 load_constant(const u32 *p) { return __ldg(p); }

// Past the first cache: another block wrote it.
DEVICE float load_shared_by_blocks(const float *p) { return __ldcg(p); }

// Programmatic dependent launch: the kernel before this one may still run until `wait_for_inputs` returns, and the next
// one may begin from `let_dependents_start` on.
DEVICE void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

DEVICE void let_dependents_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// (a & b) | c
DEVICE u32 and_or(u32 a, u32 b, u32 c) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// The lower or upper 16 bits of a word, twice.
DEVICE u32 low_twice(u32 v) { return __byte_perm(v, 0, 0x1010); }
DEVICE u32 high_twice(u32 v) { return __byte_perm(v, 0, 0x3232); }

// Pairs of 16-bit numbers: a b + c, rounded once.
DEVICE u32 fma_half2(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

DEVICE u32 fma_bfloat2(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

DEVICE u16 half_of(float v) {
  u16 d;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(v));
  return d;
}

DEVICE u16 bfloat_of(float v) {
  u16 d;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(v));
  return d;
}

DEVICE float float_of_half(u16 v) {
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(v));
  return d;
}

DEVICE float float_of_bfloat(u16 v) { return __uint_as_float((u32)v << 16); }

// c [16, 8] += a [16, 16] b [16, 8], by the 32 lanes of a warp.
#define MMA(name, type)                                                                                            \
  DEVICE void name(float c[4], const u32 a[4], u32 b0, u32 b1) {                                                   \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                            \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                      \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                  \
  }
MMA(mma_half, "f16")
MMA(mma_bfloat, "bf16")
#undef MMA

// What the lane beside this one, 1 for 0 and 0 for 1, passes here; all lanes of a warp call it.
DEVICE uint4 of_neighbour(uint4 v) {
  return make_uint4(__shfl_xor_sync(~0u, v.x, 1), __shfl_xor_sync(~0u, v.y, 1), __shfl_xor_sync(~0u, v.z, 1),
                    __shfl_xor_sync(~0u, v.w, 1));
}

// Waits for `threads` threads that name the same barrier.
DEVICE void barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

DEVICE u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Four matrices of 8 x 8 16-bit numbers: register j of a lane is (lane / 4, 2 (lane % 4)) and its right neighbour of
// matrix j, whose row r goes to the 16 bytes that lane 8 j + r names.
DEVICE void store_matrices(void *row, const u32 r[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

// Shared memory written so far becomes visible to wgmma.
DEVICE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// b [16, n] in shared memory, K-major without swizzle: cells of 8 tokens x 8 columns, 128 contiguous bytes; `columns`
// bytes lie between cells of neighbouring columns, `tokens` between those of neighbouring tokens.
typedef u64 Descriptor;
DEVICE Descriptor describe(const void *p, int columns, int tokens) {
  return (u64)((shared_address(p) & 0x3FFFF) >> 4) | (u64)(columns >> 4) << 16 | (u64)(tokens >> 4) << 32;
}

DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

// What these registers hold is computed before what follows: the compiler may move arithmetic past a fence or a wait,
// across which wgmma reads and writes them.
DEVICE void pin(u32 a[4]) { asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory"); }
DEVICE void pin(float &c) { asm volatile("" : "+f"(c)::"memory"); }

#define F4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)
#define OUTS(...) (__VA_ARGS__)
#define BARE(...) __VA_ARGS__
#define A4 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
#define D8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define D16 D8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define D32 D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D64 D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
                ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// c [64, n] += a [64, 16] b [16, n], by the 128 lanes of four warps, each with 16 rows; c and a as of `mma`.
template <int TOKENS> struct Wgmma;
#define WGMMA(n, regs, outs, a0, a1, a2, a3, desc)                                                                 \
  template <> struct Wgmma<n> {                                                                                    \
    static DEVICE void half(float *c, const u32 a[4], Descriptor b) {                                              \
      asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n" #n                  \
                   "k16.f32.f16.f16 {" regs "}, {" a0 "," a1 "," a2 "," a3 "}, " desc ", add, 1, 1, 0; }"           \
                   : BARE outs : A4);                                                                                   \
    }                                                                                                              \
    static DEVICE void bfloat(float *c, const u32 a[4], Descriptor b) {                                            \
      asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n" #n                  \
                   "k16.f32.bf16.bf16 {" regs "}, {" a0 "," a1 "," a2 "," a3 "}, " desc ", add, 1, 1, 0; }"         \
                   : BARE outs : A4);                                                                                   \
    }                                                                                                              \
  };
WGMMA(16, D8, OUTS(F4(0), F4(4)), "%8", "%9", "%10", "%11", "%12")
WGMMA(32, D16, OUTS(F16(0)), "%16", "%17", "%18", "%19", "%20")
WGMMA(64, D32, OUTS(F16(0), F16(16)), "%32", "%33", "%34", "%35", "%36")
WGMMA(128, D64, OUTS(F16(0), F16(16), F16(32), F16(48)), "%64", "%65", "%66", "%67", "%68")
#undef WGMMA
