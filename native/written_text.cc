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

std::shared_ptr<TrustedFollower> WrittenText::follow(std::shared_ptr<const IndexedText> text) {
  followers_.push_back(std::make_shared<TrustedFollower>(Follower(std::move(text), text_)));
  return followers_.back();
}

void WrittenText::push(std::int64_t token) {
  text_->append(token);
  for (const auto& follower : followers_) follower->advance(text_->last());
}

double WrittenText::first_trust() const {
  double highest = 0.0;
  for (const auto& follower : followers_) highest = std::max(highest, follower->first_trust());
  return highest;
}

}  // namespace paceline
