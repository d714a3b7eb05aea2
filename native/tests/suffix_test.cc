// The index and its followers against a search through everything. What they learn is compared with
// its twin in tests/test_suffix.py.
#include "paceline/suffix.h"

#include <algorithm>
#include <stdexcept>

#include "paceline/written_text.h"
#include "test.h"

using namespace paceline;
using namespace paceline::testing;

namespace {

using Tokens = std::vector<std::int64_t>;

std::shared_ptr<IndexedText> indexed(const Tokens& tokens) {
  auto text = std::make_shared<IndexedText>();
  text->extend(tokens);
  return text;
}

// A token of the text, or the separator before its first.
std::int64_t token_at(const Tokens& tokens, std::ptrdiff_t at) {
  return at < 0 ? kSeparator : tokens[static_cast<std::size_t>(at)];
}

// Places that follow the same `length` tokens as `written` ends with, the newest first.
std::vector<Place> slow_places(const Tokens& text, const Tokens& written, int length) {
  std::vector<Place> places;
  for (auto place = std::ssize(text) - 1; place >= 0 && places.size() < kMaxPlaces; --place) {
    bool same = true;
    for (int back = 1; back <= length; ++back) {
      same &= token_at(text, place - back) == token_at(written, std::ssize(written) - back);
    }
    if (same) places.push_back(static_cast<Place>(place));
  }
  return places;
}

std::vector<Place> as_vector(const Places& places) {
  return std::vector<Place>(places.begin(), places.end());
}

Tokens random_tokens(std::mt19937& bits, std::size_t count, std::int64_t vocabulary) {
  Tokens tokens;
  for (std::size_t i = 0; i < count; ++i) {
    tokens.push_back(std::uniform_int_distribution<std::int64_t>(0, vocabulary - 1)(bits));
  }
  return tokens;
}

}  // namespace

TEST(an_index_finds_what_a_search_finds) {
  std::mt19937 bits(1);
  for (const std::int64_t vocabulary : {1, 2, 4, 50, 1 << 22}) {
    for (const std::size_t count : {0, 1, 7, 8, 9, 200}) {
      const Tokens text = random_tokens(bits, count, vocabulary);
      const auto index = indexed(text);
      for (std::size_t end = 0; end <= count; ++end) {
        const Tokens written(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end));
        const auto other = indexed(written);
        CHECK(as_vector(index->places_of_long_end(*other)) ==
              slow_places(text, written, kLongEnd));
        CHECK(as_vector(index->places_of_short_end(*other)) ==
              slow_places(text, written, kShortEnd));
      }
    }
  }
}

TEST(every_place_of_a_follower_follows_as_many_tokens_as_it_says) {
  std::mt19937 bits(2);
  for (const std::int64_t vocabulary : {1, 2, 3, 20}) {
    WrittenText written;
    Tokens tokens;
    const auto trusted = written.follow(written.text());
    for (const std::int64_t token : random_tokens(bits, 600, vocabulary)) {
      written.push(token);
      tokens.push_back(token);
      const Follower& follower = trusted->follower();
      const int length = std::min<int>(follower.match_length(), static_cast<int>(tokens.size()));
      for (const Place place : follower.places()) {
        CHECK(place >= 0 && place < written.text()->size());
        for (int back = 1; back <= length; ++back) {
          CHECK(token_at(tokens, place - back) == token_at(tokens, std::ssize(tokens) - back));
        }
      }
      const Proposal proposal = follower.propose(15);
      CHECK(proposal.tokens.size() == (follower.places().empty() ? 0 : 15));
      CHECK(proposal.shares.size() == proposal.tokens.size());
      CHECK(written.has_proposal() == (trusted->first_trust() >= kLeastTrust));
    }
  }
}

TEST(a_text_that_grows_is_followed_to_its_end) {
  const auto other = indexed({1, 2, 3});
  WrittenText written;
  const auto trusted = written.follow(other);
  trusted->start_at(3);  // where nothing is yet
  CHECK(trusted->follower().places().empty() && trusted->first_trust() == 0.0);
  other->extend({4, 5, kSeparator, 6});
  for (const std::int64_t token : {1, 2, 3}) written.push(token);
  CHECK((trusted->follower().propose(9).tokens == std::vector<std::int32_t>{4, 5}));
  for (const std::int64_t token : {4, 5}) written.push(token);
  CHECK(trusted->follower().propose(9).tokens.empty());
  for (int i = 0; i < 100; ++i) written.push(7);
  CHECK(trusted->follower().places().empty());
}

TEST(trust_moves_towards_what_was_seen) {
  Trust trust = Trust().of_new_sequence();
  const double before = trust.factor(40);
  for (int i = 0; i < 300; ++i) trust.record(1 << 30, 1.0, false);
  CHECK(before > 0.9 && trust.factor(32) < 0.01 && trust.factor(31) > 0.9);
  for (int i = 0; i < 300; ++i) trust.record(0, 0.25, true);
  CHECK(trust.factor(0) == 1.0);
}

TEST(a_draft_is_as_long_as_pays_and_ends_with_its_text) {
  const Tokens quoted{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const RoundOffer cheap{{1.0, 1.01, 1.02, 1.03, 1.04}, 0.5, 0.0, 0.1};
  const auto draft_of = [&](const Tokens& end_tokens, const RoundOffer& offer) {
    WrittenText written(end_tokens);
    written.follow(indexed({}));
    written.follow(indexed(quoted));
    for (int i = 0; i < 6; ++i) written.push(quoted[static_cast<std::size_t>(i)]);
    return written.best_draft(offer);
  };
  const auto draft = draft_of({}, cheap);
  CHECK(draft && (draft->tokens == std::vector<std::int32_t>{7, 8, 9, 10}));
  CHECK(draft && draft->follower == 1 && draft->seconds == 1.04 + 0.5);
  const auto ended = draft_of({8}, cheap);
  CHECK(ended && (ended->tokens == std::vector<std::int32_t>{7, 8}));
  const auto shortened = draft_of({}, {{1.0, 1.01, 9.0}, 0.5, 0.0, 0.1});
  CHECK(shortened && (shortened->tokens == std::vector<std::int32_t>{7}));
  CHECK(!draft_of({}, {{1.0, 1.01}, 0.5, 0.0, 9.0}));  // what it replaces is better
  CHECK(!draft_of({}, {{1.0}, 0.5, 0.0, 0.1}) && !draft_of({}, {}));  // no room
}

TEST(wrong_drafts_use_the_credit_up_and_right_ones_bring_it_back) {
  TextCredit credit;
  CHECK(credit.pays(kFirstCredit) && !credit.pays(kFirstCredit + 0.01));
  credit.follow({5, 6}, kFirstCredit, true);
  credit.push(9);
  CHECK(!credit.pays(0.01));
  credit.follow({5, 6, 7}, 1.0, false);
  credit.follow({1}, 9.0, false);  // the first one is not judged yet
  for (const std::int32_t token : {5, 6, 7}) credit.push(token);
  CHECK(credit.pays(2.0));
  credit.follow({5, 6}, 9.0, false);
  credit.push(1);
  CHECK(credit.pays(2.0));
  for (int i = 0; i < 100; ++i) {
    credit.follow({1, 2}, 0.0, true);
    for (const std::int32_t token : {1, 2}) credit.push(token);
  }
  CHECK(credit.pays(kMostCredit) && !credit.pays(kMostCredit + 0.01));
}

TEST(what_is_wrong_is_refused_and_nothing_changes) {
  WrittenText written;
  const auto trusted = written.follow(indexed({1, 2}));
  CHECK(refuses([&] { written.push(-1); }));
  CHECK(refuses([&] { written.push(std::int64_t{kSeparator} + 1); }));
  CHECK(refuses([&] { written.text()->extend({1, -1}); }));
  CHECK(written.text()->size() == 0);
  CHECK(refuses([&] { written.follow(nullptr); }));
  CHECK(refuses([&] { trusted->turn_to(nullptr, nullptr); }));
  CHECK(refuses([&] { trusted->start_at(-1); }));
  CHECK(refuses([&] { trusted->start_at(3); }));
  CHECK(refuses([&] { trusted->follower().propose(-1); }));
  CHECK(refuses([&] { trusted->follower().propose(kMaxProposal + 1); }));
}
