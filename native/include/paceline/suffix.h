// Where the end of a text occurred before, and what came after it there. Tokens only: whether a
// proposal is worth a pass of the target is decided elsewhere.
//
// All this runs for each token of every text.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

namespace paceline {

// The end of a text is looked up by its last 6 tokens, else by 3.
constexpr int kLongEnd = 6;
constexpr int kShortEnd = 3;
constexpr int kMaxPlaces = 4;
// A match of at least 4 tokens that breaks off is looked for in the next 24 tokens, 24 times.
constexpr int kMinLostMatch = 4;
constexpr int kResyncTokens = 24;
// Stands between two texts of an index: above every token, so that no proposal goes across it.
constexpr std::int32_t kSeparator = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxTextTokens = std::int64_t{1} << 30;
constexpr std::int64_t kMaxProposal = 256;

// Index of a token in a text.
using Place = std::int32_t;
constexpr Place kNowhere = -1;

// At most kMaxPlaces of them.
class Places {
 public:
  void add(Place place) { places_[count_++] = place; }
  void keep_first(int count) { count_ = count; }
  bool empty() const { return count_ == 0; }
  bool full() const { return count_ == kMaxPlaces; }
  int size() const { return count_; }
  Place operator[](int index) const { return places_[index]; }
  Place& operator[](int index) { return places_[index]; }
  const Place* begin() const { return places_.data(); }
  const Place* end() const { return begin() + count_; }

 private:
  std::array<Place, kMaxPlaces> places_{};
  int count_ = 0;
};

// Places in a text by the `length` tokens before them: a hash table of the newest place for each
// such end, and chains from there to the older ones. The ends themselves are read from the text.
class PlacesByEnd {
 public:
  // Tokens of a text, behind kLongEnd separators.
  using Tokens = std::vector<std::int32_t>;

  explicit PlacesByEnd(int length) : length_(length) {}

  void add(const Tokens& text, Place place);
  // Where the end of `written` is found, the newest first.
  Places find(const Tokens& text, const Tokens& written) const;

 private:
  std::size_t slot_of(const Tokens& text, const std::int32_t* end) const;
  void grow(const Tokens& text);

  int length_;
  std::size_t num_ends_ = 0;
  std::vector<Place> newest_;  // a power of two of slots, at most half of them taken
  std::vector<Place> older_;   // by place
};

// Tokens, and where in them the end of a text occurs with a token to follow. Before the first
// token there are separators.
//
// Cost: constant work and 28 to 56 bytes a token, less where the text repeats itself.
class IndexedText {
 public:
  // Throws std::invalid_argument, before anything is appended, for what is neither a token nor the
  // separator, and beyond kMaxTextTokens.
  void append(std::int64_t token);
  void extend(const std::vector<std::int64_t>& tokens);

  Place size() const { return static_cast<Place>(tokens_.size()) - kLongEnd; }
  // From -kLongEnd to size() - 1.
  std::int32_t token(Place place) const { return tokens_[place + kLongEnd]; }
  std::int32_t last() const { return tokens_.back(); }

  // Where the last kLongEnd or kShortEnd tokens of `written` are followed by a token here.
  Places places_of_long_end(const IndexedText& written) const;
  Places places_of_short_end(const IndexedText& written) const;
  // Whether the kShortEnd tokens before this place are the last ones of `written`.
  bool follows_short_end(Place place, const IndexedText& written) const;

 private:
  PlacesByEnd::Tokens tokens_ = PlacesByEnd::Tokens(kLongEnd, kSeparator);
  PlacesByEnd long_{kLongEnd};
  PlacesByEnd short_{kShortEnd};
};

// What may come next.
struct Proposal {
  std::vector<std::int32_t> tokens;
  std::vector<double> shares;  // of the places that agreed so far, those that have this token too
};

// Keeps up with the places of an indexed text that go on as the written text does.
class Follower {
 public:
  // `written` may be `text`: then what comes after its end repeats what was proposed.
  // Throws std::invalid_argument without either.
  Follower(std::shared_ptr<const IndexedText> text, std::shared_ptr<const IndexedText> written);

  // How many tokens before the places are known to be those before the end of the written text.
  int match_length() const { return match_length_; }
  // Of the tokens that may come next, the best first.
  const Places& places() const { return places_; }
  // The first token of a proposal, and the share of the places that have it. There must be one.
  std::int32_t next_token() const { return text_->token(places_[0]); }
  double next_share() const;

  // The written text has one more token: to be called once for each.
  void advance();
  // Expect the text from here on, without a match before. Throws std::invalid_argument unless the
  // place is from 0 to the end of the text.
  void start_at(std::int64_t place);
  // What comes at the first place, up to `limit` tokens, with the agreement of the others.
  // Throws std::invalid_argument unless the limit is from 0 to kMaxProposal.
  Proposal propose(std::int64_t limit) const;

 private:
  void keep_up();
  void settle(int length, const Places& places);
  void look_nearby();
  Place found_nearby() const;
  int num_with(const Places& places, std::int32_t token) const;
  std::vector<double> shares(const std::vector<std::int32_t>& proposed) const;

  std::shared_ptr<const IndexedText> text_, written_;
  Places places_;
  int match_length_ = 0;
  Place lost_ = kNowhere;
  int lost_since_ = kResyncTokens;
};

}  // namespace paceline
