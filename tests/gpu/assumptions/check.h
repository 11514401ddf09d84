// What the kernels take a GPU to do where no document fully says so, one small kernel for each
// thing. A check compares what the device did with several readings of it, bit for bit: the first
// is the one that our kernels, and their emulation, rest on; the others are what else might be
// meant. A check whose data fit two readings tells nothing, and says that.
//
// The same sources are built by nvcc for a GPU and by a C++ compiler against the emulation, which
// shows that each check passes where its assumption holds. With the readings exchanged
// (`--altered`) each has to fail, and to name the reading that is true.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace assumptions {

using Words = std::vector<uint32_t>;

struct Reading {
  std::string name;
  Words words;
};

struct Outcome {
  bool held;
  std::string measured;
};

struct Check {
  const char* name;
  const char* claim;  // what has to be so
  const char* rests;  // what of ours rests on it
  int capability;     // the least that has it; 90 stands for sm_90a alone
  std::function<Outcome()> run;
};

// In the order in which they are run: what others build on comes first.
namespace instructions {
std::vector<Check> checks();
}
namespace barriers {
std::vector<Check> checks();
}
namespace tensor_copies {
std::vector<Check> checks();
}
namespace im2col {
std::vector<Check> checks();
}
namespace clusters {
std::vector<Check> checks();
}
namespace warpgroups {
std::vector<Check> checks();
}
namespace sums {
std::vector<Check> checks();
}
// Rates, which the cost models of `auto` rest on: no answer is wrong where one is off.
namespace rates {
std::vector<Check> checks();
}

// Whether the first two readings (or the range's inside and outside) are exchanged.
extern bool altered;

Outcome judge(const Words& got, std::vector<Reading> readings);
// `value` lies from `low` to `high`; `unit` follows it in the text.
Outcome between(double value, double low, double high, const std::string& unit);

uint32_t bits_of(float value);
float float_of(uint32_t bits);
Words words_of(const std::vector<float>& values);
// Small whole numbers without a pattern: -4 to 4.
float whole(unsigned i);
// bf16 of what bf16 can say.
uint16_t bf16_of(float value);
// fp16 of whole numbers from -4 to 4.
uint16_t half_of(float value);
// Where byte `at` of rows of 128 bytes lies in the 128B swizzle.
inline size_t swizzled_place(size_t at) { return at ^ ((at >> 7 & 7) << 4); }

}  // namespace assumptions
