#include "paceline/written_text.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace paceline {
namespace {

// The bucket of each length up to the last start; longer ones are in the last bucket too.
constexpr auto kBuckets = [] {
  std::array<std::uint8_t, kBucketStarts.back() + 1> buckets{};
  for (std::size_t bucket = 0; bucket < kNumBuckets; ++bucket) {
    for (std::size_t length = kBucketStarts[bucket]; length < buckets.size(); ++length) {
      buckets[length] = static_cast<std::uint8_t>(bucket);
    }
  }
  return buckets;
}();

std::size_t bucket_of(int match_length) {
  return kBuckets[std::min(match_length, kBucketStarts.back())];
}

}  // namespace

Trust::Trust() {
  expected_.fill(kStartingWeight);
  for (std::size_t i = 0; i < kNumBuckets; ++i) right_[i] = kStartingWeight * kStartingTrust[i];
}

Trust Trust::of_new_sequence() const {
  Trust trust = *this;
  trust.memory_ = kMemory;
  for (std::size_t i = 0; i < kNumBuckets; ++i) {
    const double scale = std::min(1.0, kSharedWeight / expected_[i]);
    trust.right_[i] *= scale;
    trust.expected_[i] *= scale;
  }
  return trust;
}

void Trust::record(int match_length, double share, bool right) {
  const std::size_t bucket = bucket_of(match_length);
  right_[bucket] = right_[bucket] * memory_ + (right ? 1.0 : 0.0);
  expected_[bucket] = expected_[bucket] * memory_ + share;
}

double Trust::factor(int match_length) const {
  const std::size_t bucket = bucket_of(match_length);
  return std::min(1.0, right_[bucket] / expected_[bucket]);
}

TrustedFollower::TrustedFollower(Follower follower)
    : follower_(std::move(follower)),
      own_(std::make_shared<Trust>()),
      shared_(std::make_shared<Trust>()) {}

double TrustedFollower::first_trust() const {
  if (follower_.places().empty()) return 0.0;
  return own_->factor(follower_.match_length()) * follower_.next_share();
}

bool TrustedFollower::may_pay(const RoundOffer& offer) const {
  if (offer.room() <= 0) return false;
  const double trust = first_trust();
  if (trust < kLeastTrust) return false;
  const double most_tokens = 1.0 + static_cast<double>(offer.room()) * trust;
  return offer.rate(1, most_tokens) >= offer.best_rate;
}

std::optional<TextDraft> TrustedFollower::best_draft(
    const RoundOffer& offer, const std::vector<std::int64_t>& end_tokens) const {
  if (!may_pay(offer)) return std::nullopt;
  TextDraft draft;
  auto [tokens, shares] = follower_.propose(offer.room());
  std::size_t length = 0;
  double survival = 1.0, expected = 1.0, best_rate = kMargin * offer.best_rate;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    survival *= own_->factor(follower_.match_length() + static_cast<int>(i)) * shares[i];
    if (survival < kLeastSurvival) break;
    expected += survival;
    if (const double rate = offer.rate(i + 1, expected); rate > best_rate) {
      best_rate = rate;
      length = i + 1;
      draft.expected_tokens = expected;
    }
    if (std::find(end_tokens.begin(), end_tokens.end(), tokens[i]) != end_tokens.end()) break;
  }
  if (length == 0) return std::nullopt;
  tokens.resize(length);
  draft.seconds = offer.seconds(length);
  draft.tokens = std::move(tokens);
  return draft;
}

void TrustedFollower::turn_to(std::shared_ptr<Trust> own, std::shared_ptr<Trust> shared) {
  if (!own || !shared) throw std::invalid_argument("a follower needs both trusts.");
  own_ = std::move(own);
  shared_ = std::move(shared);
}

void TrustedFollower::advance(std::int32_t last) {
  if (!follower_.places().empty()) learn(follower_.next_token() == last);
  follower_.advance();
}

void TrustedFollower::learn(bool right) {
  const int length = follower_.match_length();
  const double share = follower_.next_share();
  own_->record(length, share, right);
  if (++num_seen_ % kSharedEvery == 0) shared_->record(length, share, right);
}

void TextCredit::follow(const std::vector<std::int32_t>& tokens, double cost, bool is_made) {
  if (!is_made && !followed_.empty()) return;
  followed_ = tokens;
  cost_ = cost;
  is_made_ = is_made;
  num_right_ = 0;
}

void TextCredit::push(std::int32_t token) {
  if (left_ < kFirstCredit) left_ = std::min(kFirstCredit, left_ + kCreditRate);
  if (followed_.empty()) return;
  if (followed_[num_right_] == token && ++num_right_ < followed_.size()) return;
  const double won = static_cast<double>(num_right_) - cost_;
  if (is_made_ || won > 0.0) left_ = std::min(kMostCredit, left_ + won);
  followed_.clear();
}

std::shared_ptr<TrustedFollower> WrittenText::follow(std::shared_ptr<const IndexedText> text) {
  followers_.push_back(std::make_shared<TrustedFollower>(Follower(std::move(text), text_)));
  return followers_.back();
}

void WrittenText::push(std::int64_t token) {
  text_->append(token);
  credit_.push(text_->last());
  for (const auto& follower : followers_) follower->advance(text_->last());
}

bool WrittenText::has_proposal() const {
  return std::any_of(followers_.begin(), followers_.end(), [](const auto& follower) {
    return follower->first_trust() >= kLeastTrust;
  });
}

std::optional<TextDraft> WrittenText::best_draft(RoundOffer offer) {
  std::optional<TextDraft> best;
  for (std::size_t i = 0; i < followers_.size(); ++i) {
    std::optional<TextDraft> draft = followers_[i]->best_draft(offer, end_tokens_);
    if (!draft) continue;
    draft->follower = i;
    offer.best_rate = offer.rate(draft->tokens.size(), draft->expected_tokens);
    best = std::move(draft);
  }
  if (!best) return std::nullopt;
  const double cost = offer.cost(best->tokens.size());
  const bool is_made = credit_.pays(cost);
  credit_.follow(best->tokens, cost, is_made);
  return is_made ? std::move(best) : std::nullopt;
}

}  // namespace paceline
