// A text that is being written, and the texts that it may follow: what each token says about how
// far their matches can be trusted, and what a round should draft from them. To learn, nothing need
// be drafted.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "paceline/suffix.h"

namespace paceline {

// Matches of 4 and 5 tokens are trusted alike, and so on.
constexpr std::array kBucketStarts{0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32};
constexpr std::size_t kNumBuckets = kBucketStarts.size();
// Trust in a match before anything was seen, worth so many observations: as in HumanEval, GSM8K,
// the source of this package and answers of the pair that ships, which differ by up to 0.2.
constexpr std::array<double, kNumBuckets> kStartingTrust{0.5,  0.35, 0.5, 0.52, 0.58, 0.65,
                                                         0.68, 0.72, 0.8, 0.92, 0.96};
constexpr double kStartingWeight = 8.0;
// What one sequence has seen counts as at most 64 observations, and as 16 for a new one. All
// sequences together remember 256 of every fourth.
constexpr double kSharedWeight = 16.0;
constexpr double kMemory = 1.0 - 1.0 / 64;
constexpr double kSharedMemory = 1.0 - 1.0 / 256;
constexpr std::int64_t kSharedEvery = 4;
// Less likely first tokens are not proposed, nor is what hangs on so many that it hardly counts. A
// draft must promise more than what it replaces by the margin.
constexpr double kLeastTrust = 0.1;
constexpr double kLeastSurvival = 0.02;
constexpr double kMargin = 1.02;
// Tokens that drafts of texts may lose at first, what grows again with each token, and the most that
// they may win for later.
constexpr double kFirstCredit = 2.0;
constexpr double kCreditRate = 0.004;
constexpr double kMostCredit = 20.0;

// How often the token after a match was right, by the length of the match.
//
// Right tokens are counted against the agreement of the places, so that what is learned is the
// factor that makes a share of places a probability. Both counts forget.
class Trust {
 public:
  // Of all sequences, before the first.
  Trust();
  // What a sequence starts from.
  Trust of_new_sequence() const;

  // `match_length` must not be negative.
  void record(int match_length, double share, bool right);
  double factor(int match_length) const;

 private:
  double memory_ = kSharedMemory;
  std::array<double, kNumBuckets> right_, expected_;
};

// A round without a draft of this text: what a draft is weighed against.
struct RoundOffer {
  std::vector<double> passes;  // seconds of the pass by tokens drafted, from none on, ascending
  double other_seconds = 0.0;  // of the rest of the round
  double other_tokens = 0.0;   // that the other sequences are expected to emit
  double best_rate = 0.0;      // tokens a second that a draft must exceed

  // The longest draft that may be made.
  std::int64_t room() const { return static_cast<std::int64_t>(passes.size()) - 1; }
  // Of the round with so many tokens drafted, at most `room()`.
  double seconds(std::size_t count) const { return passes[count] + other_seconds; }
  // Tokens a second with a draft of so many tokens, of which this sequence emits `expected`.
  double rate(std::size_t count, double expected) const {
    return (other_tokens + expected) / seconds(count);
  }
  // Tokens of plain decoding that such a draft takes the time of.
  double cost(std::size_t count) const {
    const double plain = seconds(0);
    return plain > 0.0 ? (seconds(count) - plain) / plain : 0.0;
  }
};

// A proposal that pays.
struct TextDraft {
  std::vector<std::int32_t> tokens;
  double expected_tokens = 1.0;  // of this sequence in the round, the bonus token included
  double seconds = 0.0;          // of the round
  std::size_t follower = 0;      // who proposes it, by the order of `follow`
};

// A follower, and what this sequence and all of them have learned about it.
class TrustedFollower {
 public:
  explicit TrustedFollower(Follower follower);

  const Follower& follower() const { return follower_; }
  // The chance of the first token of a proposal; 0 if there is none.
  double first_trust() const;
  // The proposal with most tokens a second, if that is more than the best rate by kMargin. Nothing
  // is proposed after one of `end_tokens`.
  std::optional<TextDraft> best_draft(const RoundOffer& offer,
                                      const std::vector<std::int64_t>& end_tokens) const;

  // Another kind of text is being written. Throws std::invalid_argument without either.
  void turn_to(std::shared_ptr<Trust> own, std::shared_ptr<Trust> shared);
  void start_at(std::int64_t place) { follower_.start_at(place); }
  // `last` is the token that the written text has got: see Follower.
  void advance(std::int32_t last);

 private:
  void learn(bool right);
  bool may_pay(const RoundOffer& offer) const;

  Follower follower_;
  std::shared_ptr<Trust> own_, shared_;
  std::int64_t num_seen_ = 0;
};

// What wrong drafts of texts may still cost. A draft that it does not pay for is not made but
// followed all the same, so that a text that begins to repeat another one is noticed.
class TextCredit {
 public:
  bool pays(double cost) const { return cost <= left_; }
  // A draft is made, or is not but nothing else is followed: what would come of it? One that is
  // not made costs nothing.
  void follow(const std::vector<std::int32_t>& tokens, double cost, bool is_made);
  // The text goes on.
  void push(std::int32_t token);

 private:
  double left_ = kFirstCredit, cost_ = 0.0;
  bool is_made_ = false;
  std::vector<std::int32_t> followed_;
  std::size_t num_right_ = 0;
};

class WrittenText {
 public:
  explicit WrittenText(std::vector<std::int64_t> end_tokens = {})
      : text_(std::make_shared<IndexedText>()), end_tokens_(std::move(end_tokens)) {}

  // What was written so far, to be extended by its owner before anybody follows.
  const std::shared_ptr<IndexedText>& text() const { return text_; }
  // From the next token on. `text` may be our own, or one that grows by other hands between pushes.
  std::shared_ptr<TrustedFollower> follow(std::shared_ptr<const IndexedText> text);
  // One more token. Throws std::invalid_argument as IndexedText does.
  void push(std::int64_t token);
  // Whether a draft is worth asking for.
  bool has_proposal() const;
  // The best draft of all followers, the first of equals, if the credit pays for it. It is taken to
  // be made.
  std::optional<TextDraft> best_draft(RoundOffer offer);

 private:
  std::shared_ptr<IndexedText> text_;
  std::vector<std::int64_t> end_tokens_;
  std::vector<std::shared_ptr<TrustedFollower>> followers_;
  TextCredit credit_;
};

}  // namespace paceline
