#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <skald/config.hpp>

/// The values of chat templates and the budget that bounds what a template may compute. Private to the room.
namespace skald::inline v0::jinja {

inline constexpr std::size_t max_source_bytes = 1U << 20;
inline constexpr std::size_t max_output_bytes = 1U << 20;
inline constexpr std::size_t max_memory_bytes = 8U << 20;  // doubling of buffers stays within 16 MiB
inline constexpr std::size_t max_steps = 1'000'000;
inline constexpr int max_depth = 128;
inline constexpr std::size_t max_nodes = 60'000;

/// Throws FormatError / UnsupportedError naming the template's line.
[[noreturn]] void fail_at(std::uint32_t line, const std::string& message);
[[noreturn]] void unsupported_at(std::uint32_t line, const std::string& construct);

/// The budget of one rendering, and the line being evaluated. All growth and all work is reported here.
class Runtime {
 public:
  std::uint32_t line = 1;
  std::optional<std::chrono::system_clock::time_point> now{};

  /// Counts work; one step is about a hundred nanoseconds at most.
  void step(std::size_t count = 1) {
    steps_ += count;
    if (steps_ > max_steps || count > max_steps) steps_exceeded();
  }
  /// Work that copies or compares `bytes` in one sweep.
  void sweep(std::size_t bytes) { step(1 + bytes / 256); }
  /// Work that looks at every character.
  void scan(std::size_t bytes) { step(1 + bytes / 8); }
  /// Work that looks for something in `bytes`.
  void search(std::size_t bytes) { step(1 + bytes / 24); }
  void charge(std::size_t bytes) {
    if (bytes > room()) memory_exceeded();
    live_ += bytes;
  }
  void release(std::size_t bytes) noexcept { live_ -= bytes; }
  /// Bytes that may still be built.
  [[nodiscard]] std::size_t room() const noexcept { return max_memory_bytes - live_; }
  void need(std::size_t bytes) const {
    if (bytes > room()) memory_exceeded();
  }

  [[noreturn]] void fail(const std::string& message) const { fail_at(line, message); }
  [[noreturn]] void unsupported(const std::string& construct) const { unsupported_at(line, construct); }

 private:
  [[noreturn]] void steps_exceeded() const;
  [[noreturn]] void memory_exceeded() const;

  std::size_t steps_ = 0;
  std::size_t live_ = 0;
};

enum class Kind : std::uint8_t {
  undefined,
  none,
  boolean,
  integer,
  real,
  string,
  list,
  tuple,
  dict,
  range,
  view,      // what dict.items(), keys() and values() return
  iterator,  // a generator: can be consumed once
  space,     // namespace()
  loop,
  function,  // a global function
  macro,
  method,  // a method bound to its object
};

/// What a value refers to. Immutable (but for iterators' positions and loops), so values share freely and hold no
/// cycles: mutable things (namespaces, macros) belong to the evaluator and are referred to by plain pointers.
struct Object {
  Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  virtual ~Object() {
    if (owner != nullptr) owner->release(charged);
  }
  /// Charges the object to `runtime`; inputs and constants have no owner.
  void own(Runtime* runtime, std::size_t bytes);

  Runtime* owner = nullptr;
  std::size_t charged = 0;
  int depth = 0;  // nesting of containers, bounded so that destruction is
};

struct Text;
struct Sequence;
struct Dict;
struct Range;
struct Method;

class Value {
 public:
  Value() = default;
  explicit Value(Kind kind) : kind_(kind) {}
  Value(Kind kind, std::shared_ptr<Object> object) : kind_(kind), object_(std::move(object)) {}
  static Value none() { return Value(Kind::none); }
  static Value boolean(bool b) { return number(Kind::boolean, b ? 1 : 0); }
  static Value integer(std::int64_t i) { return number(Kind::integer, i); }
  static Value real(double d) {
    Value v(Kind::real);
    v.data_.real = d;
    return v;
  }
  /// A reference to something the evaluator owns, or the number of a function.
  static Value pointer(Kind kind, void* p) {
    Value v(kind);
    v.data_.pointer = p;
    return v;
  }
  static Value function(int id) { return number(Kind::function, id); }
  /// An undefined value; `name` (a string value) says what was missing, `attribute` whether it was a member.
  static Value undefined(const Value& name, bool attribute) {
    Value v(Kind::undefined, name.object_);
    v.data_.integer = attribute ? 1 : 0;
    return v;
  }

  [[nodiscard]] Kind kind() const noexcept { return kind_; }
  [[nodiscard]] bool is(Kind kind) const noexcept { return kind_ == kind; }
  [[nodiscard]] bool is_text() const noexcept { return kind_ == Kind::string; }
  /// int or bool, as in Python.
  [[nodiscard]] bool is_int() const noexcept { return kind_ == Kind::integer || kind_ == Kind::boolean; }
  [[nodiscard]] bool is_number() const noexcept { return is_int() || kind_ == Kind::real; }
  [[nodiscard]] std::int64_t as_int() const noexcept { return data_.integer; }
  [[nodiscard]] double as_real() const noexcept {
    return kind_ == Kind::real ? data_.real : static_cast<double>(data_.integer);
  }
  [[nodiscard]] void* as_pointer() const noexcept { return data_.pointer; }
  [[nodiscard]] const std::string& text() const noexcept;
  /// Markup of the filters `safe` and `escape`: `+` escapes what is added to it.
  [[nodiscard]] bool markup() const noexcept { return markup_; }
  [[nodiscard]] Value with_markup(bool markup) const {
    Value v = *this;
    v.markup_ = markup;
    return v;
  }
  [[nodiscard]] Sequence& sequence() const noexcept;
  [[nodiscard]] Dict& dict() const noexcept;
  [[nodiscard]] const Range& range() const noexcept;
  [[nodiscard]] const Method& method() const noexcept;
  [[nodiscard]] const std::shared_ptr<Object>& object() const noexcept { return object_; }
  [[nodiscard]] int depth() const noexcept { return object_ ? object_->depth : 0; }

 private:
  static Value number(Kind kind, std::int64_t i) {
    Value v(kind);
    v.data_.integer = i;
    return v;
  }

  Kind kind_ = Kind::undefined;
  bool markup_ = false;
  union {
    std::int64_t integer;
    double real;
    void* pointer;
  } data_{0};
  std::shared_ptr<Object> object_;
};

struct Text : Object {
  std::string text;
};

/// List, tuple, view or iterator.
struct Sequence : Object {
  std::vector<Value> items;
  const char* name = "";     // of a view: "dict_items", …
  std::size_t consumed = 0;  // of an iterator
};

/// An insertion-ordered mapping.
struct Dict : Object {
  std::vector<std::pair<Value, Value>> items;

  /// Finds a key; null if there is none. Keys are equal as in Python (1 == 1.0 == true).
  [[nodiscard]] const Value* find(const Value& key) const;
  [[nodiscard]] const Value* find(std::string_view key) const;
  void set(const Value& key, Value value);
  [[nodiscard]] static bool hashable(const Value& key) noexcept;

 private:
  struct Key {
    int rank = 0;
    double number = 0;
    std::string_view text;
    bool operator<(const Key& other) const noexcept;
  };
  static Key key_of(const Value& key) noexcept;
  [[nodiscard]] const Value* find(const Key& key) const;

  std::map<Key, std::size_t> index_;  // ordered, so that hostile keys cannot make it slow
};

struct Range : Object {
  std::int64_t start = 0;
  std::int64_t stop = 0;
  std::int64_t step = 1;
  std::int64_t count = 0;
};

struct Method : Object {
  Value self;
  std::string name;
};

// --- making values; a null `runtime` makes an input or a constant that is not charged -------------------------------
Value make_text(Runtime* runtime, std::string text, bool markup = false);
Value make_sequence(Runtime* runtime, Kind kind, std::vector<Value> items, const char* name = "");
inline Value make_list(Runtime* runtime, std::vector<Value> items) {
  return make_sequence(runtime, Kind::list, std::move(items));
}
inline Value make_tuple(Runtime* runtime, std::vector<Value> items) {
  return make_sequence(runtime, Kind::tuple, std::move(items));
}
/// `dict` must be filled; charges it and fixes its depth.
Value make_dict(Runtime* runtime, std::shared_ptr<Dict> dict);

/// Text that is being built, kept within the budget.
class TextBuilder {
 public:
  explicit TextBuilder(Runtime& runtime) : runtime_(&runtime) {}
  TextBuilder(const TextBuilder&) = delete;
  TextBuilder& operator=(const TextBuilder&) = delete;
  ~TextBuilder() { runtime_->release(charged_); }

  void add(std::string_view piece) {
    runtime_->charge(piece.size());
    charged_ += piece.size();
    work_ += piece.size() + 8;
    if (work_ >= 256) {
      runtime_->step(work_ / 256);
      work_ %= 256;
    }
    text_.append(piece);
  }
  void add(char c) { add(std::string_view(&c, 1)); }
  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  /// Hands the text over; the builder is empty afterwards.
  [[nodiscard]] std::string take() {
    runtime_->release(charged_);
    charged_ = 0;
    return std::exchange(text_, {});
  }
  [[nodiscard]] Value value(bool markup = false) { return make_text(runtime_, take(), markup); }
  [[nodiscard]] Runtime& runtime() noexcept { return *runtime_; }

 private:
  Runtime* runtime_;
  std::string text_;
  std::size_t charged_ = 0;
  std::size_t work_ = 0;
};

// --- Python's meaning of values --------------------------------------------------------------------------------------
/// Name of the type in messages, as Python says it: "str", "dict", ….
const char* type_name(const Value& value) noexcept;
bool truthy(const Value& value) noexcept;
bool equal(Runtime& runtime, const Value& a, const Value& b);
/// -1, 0 or 1; 2 if one is NaN. Fails for types without an order.
int compare(Runtime& runtime, const Value& a, const Value& b, const char* op);
bool contains(Runtime& runtime, const Value& item, const Value& container);
/// Length as of `len()`, in characters for text; none for what has no length.
std::optional<std::size_t> length_of(Runtime& runtime, const Value& value);
bool iterable(const Value& value) noexcept;
/// The items one iterates over; fails for what cannot be iterated. Consumes an iterator.
std::vector<Value> iterate(Runtime& runtime, const Value& value);
/// The same as a list, tuple or view that shares the items where that is possible.
Value iterate_shared(Runtime& runtime, const Value& value);
/// `str(value)` and `repr(value)`.
void append_str(TextBuilder& out, const Value& value);
void append_repr(TextBuilder& out, const Value& value);
std::string to_text(Runtime& runtime, const Value& value);
/// Fails with what an operation on an undefined value says.
[[noreturn]] void fail_undefined(const Runtime& runtime, const Value& value);
/// Python's `repr` of a float: the shortest digits that read back the same.
std::string real_text(double value);
Value range_item(const Range& range, std::int64_t index);

// --- JSON (jinja_json.cpp) -------------------------------------------------------------------------------------------
/// Parses JSON into values, keeping the order of keys. `what` names the input in errors.
Value parse_json(const std::string& json, const char* what);
struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent{};
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
/// Python's `json.dumps`.
void append_json(TextBuilder& out, const Value& value, const JsonStyle& style, int level = 0);

}  // namespace skald::inline v0::jinja
