"""C and C++ that evaluate calls of an answer and show the values as Python's repr would.

`main_c(calls)` and `main_cpp(calls)` are main files beside `answer.c` or `answer.cpp`, whose own
main is renamed away. Each value goes to `inside.CHANNEL` as a frame of `inside.py`. Shown are
truth values, characters, texts and numbers; in C++ also pairs, tuples and containers. C has truth
values only where the call's type is bool; `f(2) == 4` is an int there.
"""

from collections.abc import Sequence

from r1jax.rewards import inside

_C = r"""
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static FILE *r1_out;
static void r1_bool(bool v) { fputs(v ? "True" : "False", r1_out); }
static void r1_int(long long v) { fprintf(r1_out, "%lld", v); }
static void r1_natural(unsigned long long v) { fprintf(r1_out, "%llu", v); }
static void r1_real(double v) { fprintf(r1_out, "%.17g", v); }
static void r1_text(const char *v) {
  char quote = strchr(v, '\'') && !strchr(v, '"') ? '"' : '\'';
  fputc(quote, r1_out);
  for (; *v; v++) {
    const char *found = strchr("\n\r\t", *v);
    if (found) fprintf(r1_out, "\\%c", "nrt"[found - (const char *)strchr("\n\r\t", '\n')]);
    else fprintf(r1_out, *v == quote || *v == '\\' ? "\\%c" : "%c", *v);
  }
  fputc(quote, r1_out);
}
static void r1_char(char v) { r1_text((char[]){v, 0}); }
#define R1_CALL(...) { \
  char *text; size_t size; r1_out = open_memstream(&text, &size); \
  _Generic((__VA_ARGS__), bool: r1_bool, char: r1_char, char *: r1_text, const char *: r1_text, \
    float: r1_real, double: r1_real, long double: r1_real, unsigned long: r1_natural, \
    unsigned long long: r1_natural, default: r1_int)(__VA_ARGS__); \
  fclose(r1_out); dprintf(CHANNEL, "0 %zu\n%s", size, text); free(text); }
"""

_CPP = r"""
#include <iomanip>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <unistd.h>
namespace r1 {
inline void text(std::ostream& o, const std::string& v) {
  bool twice = v.find('\'') != v.npos && v.find('"') == v.npos;
  char quote = twice ? '"' : '\'';
  o << quote;
  for (char c : v) {
    if (c == '\n') o << "\\n";
    else if (c == '\r') o << "\\r";
    else if (c == '\t') o << "\\t";
    else if (c == quote || c == '\\') o << '\\' << c;
    else o << c;
  }
  o << quote;
}
template <class T> void show(std::ostream& o, const T& v) {
  if constexpr (std::is_same_v<T, bool>) o << (v ? "True" : "False");
  else if constexpr (std::is_same_v<T, char>) text(o, std::string(1, v));
  else if constexpr (std::is_arithmetic_v<T>) o << std::setprecision(17) << +v;
  else if constexpr (std::is_convertible_v<T, std::string>) text(o, v);
  else if constexpr (requires { std::tuple_size<T>::value; }) {
    const char* comma = "";
    o << '(';
    std::apply([&](const auto&... x) { ((o << comma, comma = ", ", show(o, x)), ...); }, v);
    o << (std::tuple_size<T>::value == 1 ? ",)" : ")");
  } else {
    constexpr bool map = requires { typename T::mapped_type; };
    constexpr bool set = requires { typename T::key_type; };
    const char* comma = "";
    o << (set ? '{' : '[');
    for (const auto& x : v) {
      o << comma;
      comma = ", ";
      if constexpr (map) { show(o, x.first); o << ": "; show(o, x.second); }
      else show(o, x);
    }
    o << (set ? '}' : ']');
  }
}
template <class T> void call(const T& v) {
  std::ostringstream o;
  show(o, v);
  std::string s = "0 " + std::to_string(o.str().size()) + "\n" + o.str();
  if (write(CHANNEL, s.data(), s.size()) != (ssize_t)s.size()) _exit(1);
}
}
#define R1_CALL(...) r1::call(__VA_ARGS__);
"""


def main_file(calls: Sequence[str], extension: str) -> str:
  """The main file for answer.c or answer.cpp; without calls it is the answer alone."""
  answer = f'#include "answer.{extension}"\n'
  if not calls:
    return answer
  shown = {'c': _C, 'cpp': _CPP}[extension]
  body = ''.join(f'  R1_CALL({call})\n' for call in calls)
  # signed: an answer may have made another type of int.
  return (
    f'#define CHANNEL {inside.CHANNEL}\n{shown}#define main r1_answer_main\n{answer}'
    f'#undef main\nsigned main() {{\n{body}  return 0;\n}}\n'
  )
