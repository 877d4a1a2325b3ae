// Prints the peak GFLOP/s of this processor's multiply-adds on a given number of threads, for each dtype of the native
// code. The measured loop does nothing but add products to sums in registers.

#include <chrono>
#include <cstdio>
#include <thread>

#include "common.h"

template <typename T>
float Work(int64_t rounds) {
  constexpr int kSums = 12;  // more than a multiply-add's latency in cycles, fewer than AVX2's registers
  Vector sums[kSums];
  const float value = 1;
#pragma GCC unroll 12
  for (int s = 0; s < kSums; s++) {
    sums[s] = Zero();
    asm volatile("" : "+v"(sums[s]));  // otherwise the compiler would see that all sums are equal
  }
  for (int64_t i = 0; i < rounds; i++) {
    Vector one = Broadcast(&value);
    asm volatile("" : "+v"(one));  // otherwise the compiler would see that all rounds do the same
#pragma GCC unroll 12
    for (int s = 0; s < kSums; s++) sums[s] = T::MultiplyAdd(one, one, sums[s]);
  }
  alignas(64) float all[kLanes];
#pragma GCC unroll 12
  for (int s = 1; s < kSums; s++) sums[0] += sums[s];
  StoreFloats(all, sums[0]);
  return all[0];
}

template <typename T>
void Measure(const char* dtype, int threads) {
  constexpr int64_t kRounds = 20000000, kFlopsOfRound = 12 * kLanes * T::kPair * 2;
  double best = 0;
  for (int repeat = 0; repeat < 5; repeat++) {
    std::atomic<float> sink{0};
    std::vector<std::thread> workers;
    auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; t++) workers.emplace_back([&] { sink = Work<T>(kRounds); });
    for (std::thread& worker : workers) worker.join();
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, threads * kRounds * kFlopsOfRound / seconds.count() / 1e9);
  }
  std::printf("%s %.0f\n", dtype, best);
}

int main(int, char** arguments) {
  int threads = std::atoi(arguments[1]);
  Measure<Float32>("float32", threads);
#ifdef __AVX512BF16__
  Measure<BFloat16>("bfloat16", threads);
#endif
}
