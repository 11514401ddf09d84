// assumptions [--list] [--altered] [NAME...]: runs the checks of these names, else all, up to the
// first that fails with an error of the device. A line of JSON before each check and one after it,
// so that whoever reads them knows which one hangs.
//
// Exit code: 0 all held, 1 not all, 2 no device or an unknown name, 3 an error of the device.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>

#include "device.h"

namespace assumptions {

bool altered = false;

Outcome judge(const Words& got, std::vector<Reading> readings) {
  if (altered) std::swap(readings[0], readings[1]);
  std::string others;
  bool first = false;
  for (const Reading& reading : readings) {
    if (reading.words != got) continue;
    if (&reading == &readings[0])
      first = true;
    else
      others += (others.empty() ? "" : ", ") + reading.name;
  }
  if (first && others.empty()) return {true, readings[0].name};
  if (first) return {false, "undecided: the data also fit: " + others};
  if (!others.empty()) return {false, "as if: " + others};
  const Words& expected = readings[0].words;
  if (expected.size() != got.size()) return {false, "a result of another size"};
  size_t wrong = 0, at = 0;
  for (size_t i = got.size(); i-- > 0;)
    if (expected[i] != got[i]) ++wrong, at = i;
  char text[160];
  std::snprintf(text, sizeof text,
                "no reading fits: %zu of %zu words differ, the first at %zu: %08x for %08x", wrong,
                got.size(), at, got[at], expected[at]);
  return {false, text};
}

Outcome between(double value, double low, double high, const std::string& unit) {
  char text[160];
  std::snprintf(text, sizeof text, "%.4g%s (expected %.4g to %.4g)", value, unit.c_str(), low,
                high);
  const bool inside = std::isfinite(value) && value >= low && value <= high;
  return {inside != altered, text};
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
Words words_of(const std::vector<float>& values) {
  Words words(values.size());
  std::memcpy(words.data(), values.data(), 4 * values.size());
  return words;
}
float whole(unsigned i) {
  i = (i + 1) * 2654435761u;
  i ^= i >> 15;
  i *= 2246822519u;
  return static_cast<float>((i >> 16) % 9) - 4.f;
}
uint16_t bf16_of(float value) { return static_cast<uint16_t>(bits_of(value) >> 16); }

uint16_t half_of(float value) {
  const uint32_t bits = bits_of(value);
  if (value == 0.f) return 0;
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | ((bits >> 23 & 0xFFu) - 112u) << 10 |
                               (bits >> 13 & 0x3FFu));
}

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c < ' ' ? ' ' : c;
  }
  return out + '"';
}

void say(const std::string& text) {
  std::printf("{%s}\n", text.c_str());
  std::fflush(stdout);
}

// What becomes of a check.
enum Ending { kHeld, kNotHeld, kFailed };

std::string described(const Check& check, bool rate) {
  return "\"name\": " + quoted(check.name) + ", \"claim\": " + quoted(check.claim) +
         ", \"rests\": " + quoted(check.rests) + ", \"rate\": " + (rate ? "true" : "false");
}

Ending run(const Check& check, bool rate, int capability) {
  say("\"begins\": " + quoted(check.name));
  Outcome found{false, ""};
  Ending ending = kHeld;
  const bool there = check.capability == 90 ? capability == 90 : capability >= check.capability;
  try {
    if (there) {
      found = check.run();
      ending = found.held ? kHeld : kNotHeld;
    }
  } catch (const std::exception& error) {
    found.measured = error.what();
    ending = kFailed;
  }
  static constexpr const char* kNames[] = {"held", "does not hold", "failed"};
  say(described(check, rate) +
      ", \"outcome\": " + quoted(there ? kNames[ending] : "not applicable") +
      ", \"measured\": " + quoted(found.measured));
  return ending;
}

}  // namespace
}  // namespace assumptions

int main(int count, char** words) {
  using namespace assumptions;
  std::vector<std::string> names;
  bool list = false;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(words[i], "--list") == 0)
      list = true;
    else if (std::strcmp(words[i], "--altered") == 0)
      altered = true;
    else
      names.emplace_back(words[i]);
  }
  int capability = 0;
  try {
    if (!list) capability = present_device().capability;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "no device: %s\n", error.what());
    return 2;
  }
  size_t known = 0;
  bool all_held = true;
  for (const auto& part :
       {instructions::checks, barriers::checks, tensor_copies::checks, im2col::checks,
        clusters::checks, warpgroups::checks, sums::checks, rates::checks}) {
    const bool rate = part == rates::checks;
    for (const Check& check : part()) {
      bool wanted = names.empty();
      for (const std::string& name : names) wanted = wanted || name == check.name;
      if (!wanted) continue;
      ++known;
      if (list) {
        say(described(check, rate));
        continue;
      }
      const Ending ending = run(check, rate, capability);
      // The device may be lost to this process: the others are for another one.
      if (ending == kFailed) return 3;
      all_held = all_held && ending == kHeld;
    }
  }
  if (known < names.size()) std::fprintf(stderr, "an unknown name\n");
  return known < names.size() ? 2 : all_held ? 0 : 1;
}
