#include "paceline/suffix.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <utility>

#include "paceline/errors.h"

namespace paceline {
namespace {

constexpr std::size_t kFirstSlots = 16;

std::uint64_t hash_of(const std::int32_t* tokens, int count) {
  std::uint64_t hash = 0;
  for (int i = 0; i < count; ++i) {
    hash = (hash ^ static_cast<std::uint32_t>(tokens[i])) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

// ---- Places by the tokens before them ----

void PlacesByEnd::add(const Tokens& text, Place place) {
  older_.resize(static_cast<std::size_t>(place) + 1, kNowhere);
  if (2 * (num_ends_ + 1) > newest_.size()) grow(text);
  Place& newest = newest_[slot_of(text, text.data() + place + kLongEnd - length_)];
  if (newest == kNowhere) ++num_ends_;
  older_[place] = std::exchange(newest, place);
}

Places PlacesByEnd::find(const Tokens& text, const Tokens& written) const {
  Places places;
  if (newest_.empty()) return places;
  Place place = newest_[slot_of(text, written.data() + written.size() - length_)];
  for (; place != kNowhere && !places.full(); place = older_[place]) places.add(place);
  return places;
}

// The slot of this end, or the free one that it would take.
std::size_t PlacesByEnd::slot_of(const Tokens& text, const std::int32_t* end) const {
  const std::size_t mask = newest_.size() - 1;
  const std::int32_t* ends = text.data() + kLongEnd - length_;
  std::size_t slot = hash_of(end, length_) & mask;
  while (newest_[slot] != kNowhere && !std::equal(end, end + length_, ends + newest_[slot])) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

void PlacesByEnd::grow(const Tokens& text) {
  std::vector<Place> places(std::max(kFirstSlots, 2 * newest_.size()), kNowhere);
  places.swap(newest_);
  for (const Place place : places) {
    if (place == kNowhere) continue;
    newest_[slot_of(text, text.data() + place + kLongEnd - length_)] = place;
  }
}

// ---- Indexed text ----

// The token comes first, so that no place without a token is found should memory run out.
void IndexedText::append(std::int64_t token) {
  check_range("token_id", token, 0, kSeparator);
  check_range("num_tokens", size() + std::int64_t{1}, 0, kMaxTextTokens);
  const Place place = size();
  tokens_.push_back(static_cast<std::int32_t>(token));
  long_.add(tokens_, place);
  short_.add(tokens_, place);
}

void IndexedText::extend(const std::vector<std::int64_t>& tokens) {
  for (const std::int64_t token : tokens) check_range("token_id", token, 0, kSeparator);
  check_range("num_tokens", size() + static_cast<std::int64_t>(tokens.size()), 0, kMaxTextTokens);
  for (const std::int64_t token : tokens) append(token);
}

Places IndexedText::places_of_long_end(const IndexedText& written) const {
  return long_.find(tokens_, written.tokens_);
}

Places IndexedText::places_of_short_end(const IndexedText& written) const {
  return short_.find(tokens_, written.tokens_);
}

bool IndexedText::follows_short_end(Place place, const IndexedText& written) const {
  const auto end = tokens_.begin() + place + kLongEnd;
  return std::equal(end - kShortEnd, end, written.tokens_.end() - kShortEnd);
}

// ---- Follower ----

Follower::Follower(std::shared_ptr<const IndexedText> text,
                   std::shared_ptr<const IndexedText> written)
    : text_(std::move(text)), written_(std::move(written)) {
  if (!text_ || !written_) throw std::invalid_argument("a follower needs a text and its writing.");
}

int Follower::num_with(const Places& places, std::int32_t token) const {
  const auto has_it = [&](Place place) { return text_->token(place) == token; };
  return static_cast<int>(std::count_if(places.begin(), places.end(), has_it));
}

double Follower::next_share() const {
  return static_cast<double>(num_with(places_, next_token())) / places_.size();
}

void Follower::advance() {
  if (!places_.empty()) keep_up();
  if (match_length_ >= kLongEnd) return;
  if (const Places found = text_->places_of_long_end(*written_); !found.empty()) {
    settle(kLongEnd, found);
  } else if (match_length_ < kShortEnd) {
    const Places shorter = text_->places_of_short_end(*written_);
    if (!shorter.empty()) settle(kShortEnd, shorter);
  }
  if (lost_since_ < kResyncTokens) look_nearby();
}

void Follower::start_at(std::int64_t place) {
  check_range("place", place, 0, text_->size());
  lost_ = static_cast<Place>(place);
  lost_since_ = 0;
  places_ = {};
  if (lost_ < text_->size()) places_.add(lost_);
}

void Follower::keep_up() {
  const Place lost = places_[0];
  int kept = 0;
  for (const Place place : places_) {
    if (text_->token(place) != written_->last() || place + 1 >= text_->size()) continue;
    places_[kept++] = place + 1;
  }
  places_.keep_first(kept);
  if (kept > 0) {
    ++match_length_;
    return;
  }
  if (match_length_ >= kMinLostMatch) {
    lost_ = lost;
    lost_since_ = 0;
  }
  match_length_ = 0;
}

// Follow these; first what most of them agree on, then the newest.
void Follower::settle(int length, const Places& places) {
  match_length_ = length;
  places_ = {};
  for (int count = places.size(); count > 0; --count) {
    for (const Place place : places) {
      if (num_with(places, text_->token(place)) == count) places_.add(place);
    }
  }
}

// Where a match broke off, prefer a place shortly after, even one of a single token.
void Follower::look_nearby() {
  ++lost_since_;
  if (match_length_ > kShortEnd) return;
  if (!places_.empty() && places_[0] > lost_ && places_[0] <= lost_ + kResyncTokens) return;
  const Place place = found_nearby();
  if (place == kNowhere) return;
  places_ = {};
  places_.add(place);
  match_length_ = std::max(match_length_, 1);
}

// After the first token there that is the last written one, and ends a match as long as ours.
Place Follower::found_nearby() const {
  const Place stop = std::min(lost_ + kResyncTokens, text_->size() - 1);
  for (Place at = lost_; at < stop; ++at) {
    if (text_->token(at) != written_->last()) continue;
    if (match_length_ == 0 || text_->follows_short_end(at + 1, *written_)) return at + 1;
  }
  return kNowhere;
}

Proposal Follower::propose(std::int64_t limit) const {
  check_range("limit", limit, 0, kMaxProposal);
  Proposal proposal;
  if (places_.empty()) return proposal;
  std::vector<std::int32_t>& tokens = proposal.tokens;
  const Place first = places_[0];
  const auto stop = static_cast<Place>(std::min<std::int64_t>(text_->size(), first + limit));
  tokens.reserve(static_cast<std::size_t>(limit));
  for (Place at = first; at < stop && text_->token(at) != kSeparator; ++at) {
    tokens.push_back(text_->token(at));
  }
  if (text_ == written_ && !tokens.empty()) {
    const std::size_t period = tokens.size();
    for (std::size_t i = period; i < static_cast<std::size_t>(limit); ++i) {
      tokens.push_back(tokens[i - period]);
    }
  }
  proposal.shares = shares(tokens);
  return proposal;
}

std::vector<double> Follower::shares(const std::vector<std::int32_t>& proposed) const {
  std::vector<double> shares;
  shares.reserve(proposed.size());
  Places agreeing = places_;  // the first always does
  for (std::size_t ahead = 0; ahead < proposed.size(); ++ahead) {
    int kept = 1;
    for (int i = 1; i < agreeing.size(); ++i) {
      const std::int64_t at = agreeing[i] + static_cast<std::int64_t>(ahead);
      if (at >= text_->size() || text_->token(static_cast<Place>(at)) != proposed[ahead]) continue;
      agreeing[kept++] = agreeing[i];
    }
    shares.push_back(static_cast<double>(kept) / agreeing.size());
    agreeing.keep_first(kept);
  }
  return shares;
}

}  // namespace paceline
