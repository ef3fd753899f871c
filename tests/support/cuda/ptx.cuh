// Functions of the names in qbench/int4/csrc/cuda/ptx.cuh, for a CPU: each thread of a block is a fiber, and what needs
// its neighbours waits for them. Threads run in a random order between barriers, and wgmma reads its shared operand
// either when it is issued or as late as it may, so that a barrier that lacks shows.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <vector>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
struct dim3 { int x, y, z; };
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

#define __global__
#define __launch_bounds__(n)
#define __shared__ static
#define DEVICE inline

struct Lane {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
  int waits = -1;                                  // for a barrier, of so many
  int of = 0;
  u32 given[8];                                    // what a warp's lanes show each other
  void *row;
  std::vector<std::vector<std::function<void()>>> groups;  // committed products that have not run
  std::vector<std::function<void()>> open;
};
static std::vector<Lane> lanes;
static int current;
static bool late;
static ucontext_t scheduler;
static dim3 threadIdx, blockIdx, gridDim;
alignas(128) static char memory_of_block[232448];

inline char *shared_memory() { return memory_of_block; }
inline void pause_for(int barrier, int threads) {
  Lane &lane = lanes[current];
  lane.waits = barrier;
  lane.of = threads;
  swapcontext(&lane.context, &scheduler);
}
inline void barrier(int id, int threads) { pause_for(id, threads); }
inline void __syncthreads() { pause_for(0, (int)lanes.size()); }
inline void __threadfence() {}
inline int atomicAdd(int *p, int v) { int old = *p; *p += v; return old; }
inline void warp() { pause_for(100 + current / 32, 32); }

inline uint4 load_once(const uint4 *p) { return *p; }
inline uint2 load_once(const uint2 *p) { return *p; }
inline u32 load_constant(const u32 *p) { return *p; }
inline float load_shared_by_blocks(const float *p) { return *p; }
inline void wait_for_inputs() {}
inline void let_dependents_start() {}
inline u32 and_or(u32 a, u32 b, u32 c) { return (a & b) | c; }
inline u32 low_twice(u32 v) { return (v & 0xffff) * 0x10001u; }
inline u32 high_twice(u32 v) { return (v >> 16) * 0x10001u; }

inline float float_of_bfloat(u16 v) { u32 w = (u32)v << 16; float f; memcpy(&f, &w, 4); return f; }
inline u16 bfloat_of(float v) { u32 w; memcpy(&w, &v, 4); return (u16)((w + 0x7fff + (w >> 16 & 1)) >> 16); }
inline float float_of_half(u16 v) {
  const int e = v >> 10 & 31;
  const float m = e ? std::ldexp(1024.f + (v & 1023), e - 25) : std::ldexp((float)(v & 1023), -24);
  return v >> 15 ? -m : m;
}
inline u16 half_of(double v) {
  const u16 sign = std::signbit(v) ? 0x8000 : 0;
  v = std::fabs(v);
  if (v == 0) return sign;
  const int e = std::max(std::ilogb(v), -14);
  const double units = std::nearbyint(std::ldexp(v, 10 - e));  // of the last place
  const int bits = ((e + 14) << 10) + (int)units;              // a carry goes into the exponent, as it should
  return sign | (u16)std::min(bits, 0x7c00);
}
inline u32 fma_half2(u32 a, u32 b, u32 c) {
  auto one = [](u16 x, u16 y, u16 z) { return half_of((double)float_of_half(x) * float_of_half(y) + float_of_half(z)); };
  return one(a, b, c) | (u32)one(a >> 16, b >> 16, c >> 16) << 16;
}
inline u32 fma_bfloat2(u32 a, u32 b, u32 c) {
  auto one = [](u16 x, u16 y, u16 z) {
    return bfloat_of((float)((double)float_of_bfloat(x) * float_of_bfloat(y) + float_of_bfloat(z)));
  };
  return one(a, b, c) | (u32)one(a >> 16, b >> 16, c >> 16) << 16;
}

inline uint4 of_neighbour(uint4 v) {
  Lane &own = lanes[current];
  memcpy(own.given, &v, sizeof v);
  warp();
  memcpy(&v, lanes[current ^ 1].given, sizeof v);
  warp();
  return v;
}

typedef float (*Widen)(u16);
inline float element(u32 pair, int e, Widen widen) { return widen((u16)(pair >> (16 * e))); }

// Element (row, k) of A [16, 16] of the warp of `lane`: register 2 (k / 8) + row / 8 of lane 4 (row % 8) + k % 8 / 2.
inline float a_of(int warp_start, int row, int k, Widen widen) {
  const Lane &lane = lanes[warp_start + 4 * (row % 8) + k % 8 / 2];
  return element(lane.given[2 * (k / 8) + row / 8], k & 1, widen);
}
inline void mma(float *c, const u32 *a, u32 b0, u32 b1, Widen widen) {
  Lane &own = lanes[current];
  for (int i = 0; i < 4; i++) own.given[i] = a[i];
  own.given[4] = b0;
  own.given[5] = b1;
  warp();
  const int start = current / 32 * 32, g = current % 32 / 4, t = current % 4;
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 16; k++) {
      const int column = 2 * t + (i & 1);
      const Lane &holder = lanes[start + 4 * column + k % 8 / 2];
      c[i] += a_of(start, g + 8 * (i >> 1), k, widen) * element(holder.given[4 + k / 8], k & 1, widen);
    }
  warp();
}
inline void mma_half(float *c, const u32 *a, u32 b0, u32 b1) { mma(c, a, b0, b1, float_of_half); }
inline void mma_bfloat(float *c, const u32 *a, u32 b0, u32 b1) { mma(c, a, b0, b1, float_of_bfloat); }

inline void store_matrices(void *row, const u32 *r) {
  Lane &own = lanes[current];
  own.row = row;
  warp();
  const int start = current / 32 * 32, lane = current % 32;
  for (int j = 0; j < 4; j++) memcpy((char *)lanes[start + 8 * j + lane / 4].row + 4 * (lane % 4), r + j, 4);
  warp();
}
inline void publish_shared() {}
inline void pin(u32 *) {}
inline void pin(float &) {}

struct Descriptor { const char *p; int columns, tokens; };
inline Descriptor describe(const void *p, int columns, int tokens) { return {(const char *)p, columns, tokens}; }
inline void wgmma_begin() {}
inline void wgmma_commit() {
  Lane &own = lanes[current];
  own.groups.push_back(own.open);
  own.open.clear();
}
template <int PENDING> void wgmma_wait() {
  auto &groups = lanes[current].groups;
  while ((int)groups.size() > PENDING) {
    for (auto &product : groups.front()) product();
    groups.erase(groups.begin());
  }
}
template <int TOKENS> struct Wgmma {
  static void any(float *c, const u32 *a, Descriptor b, Widen widen) {
    Lane &own = lanes[current];
    for (int i = 0; i < 4; i++) own.given[i] = a[i];
    warp();
    const int start = current / 32 * 32, g = current % 32 / 4, t = current % 4;
    std::vector<float> rows(32);
    for (int i = 0; i < 32; i++) rows[i] = a_of(start, g + 8 * (i / 16), i % 16, widen);
    warp();
    auto product = [=] {
      for (int j = 0; j < TOKENS / 2; j++)
        for (int k = 0; k < 16; k++) {
          const int token = j / 4 * 8 + 2 * t + (j & 1);
          u16 v;
          memcpy(&v, b.p + k / 8 * b.columns + token / 8 * b.tokens + token % 8 * 16 + k % 8 * 2, 2);
          c[j] += rows[16 * (j >> 1 & 1) + k] * widen(v);
        }
    };
    if (late) own.open.push_back(product);
    else product();
  }
  static void half(float *c, const u32 *a, Descriptor b) { any(c, a, b, float_of_half); }
  static void bfloat(float *c, const u32 *a, Descriptor b) { any(c, a, b, float_of_bfloat); }
};

static std::function<void()> body;
static void enter() {
  body();
  lanes[current].done = true;
  swapcontext(&lanes[current].context, &scheduler);
}

// Runs `kernel` for every block of a grid, one after another.
inline void launch(dim3 grid, int threads, int seed, std::function<void()> kernel) {
  std::mt19937 random(seed);
  body = kernel;
  gridDim = grid;
  late = seed & 1;
  std::vector<int> order(threads), arrived;
  for (int i = 0; i < threads; i++) order[i] = i;
  lanes.resize(threads);
  for (int at = 0; at < grid.x * grid.y * grid.z; at++) {
    blockIdx = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
    memset(memory_of_block, 0xff, sizeof memory_of_block);  // NaN
    for (auto &lane : lanes) {
      lane.stack.resize(1 << 17);
      lane.done = false;
      lane.waits = -1;
      getcontext(&lane.context);
      lane.context.uc_stack.ss_sp = lane.stack.data();
      lane.context.uc_stack.ss_size = lane.stack.size();
      makecontext(&lane.context, enter, 0);
    }
    for (int left = threads; left;) {
      std::shuffle(order.begin(), order.end(), random);
      bool ran = false;
      for (int i : order) {
        if (lanes[i].done || lanes[i].waits >= 0) continue;
        ran = true;
        current = i;
        threadIdx.x = i;
        swapcontext(&scheduler, &lanes[i].context);
        left -= lanes[i].done;
      }
      std::map<int, std::vector<int>> waiting;
      for (int i = 0; i < threads; i++)
        if (!lanes[i].done && lanes[i].waits >= 0) waiting[lanes[i].waits].push_back(i);
      bool released = false;
      for (auto &[id, at_barrier] : waiting)
        if ((int)at_barrier.size() == lanes[at_barrier[0]].of) {
          released = true;
          for (int i : at_barrier) lanes[i].waits = -1;
        }
      if (left && !ran && !released) abort();  // a deadlock
    }
  }
}
