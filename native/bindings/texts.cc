// Texts to draft from, and who follows them.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "paceline/errors.h"
#include "paceline/suffix.h"
#include "paceline/written_text.h"

namespace paceline {
namespace {

std::vector<std::int32_t> tokens_of(const IndexedText& text) {
  std::vector<std::int32_t> tokens;
  for (Place place = 0; place < text.size(); ++place) tokens.push_back(text.token(place));
  return tokens;
}

void record(Trust& trust, std::int64_t match_length, double share, bool right) {
  check_range("match_length", match_length, 0, kMaxTextTokens);
  trust.record(static_cast<int>(match_length), share, right);
}

double factor(const Trust& trust, std::int64_t match_length) {
  check_range("match_length", match_length, 0, kMaxTextTokens);
  return trust.factor(static_cast<int>(match_length));
}

std::vector<Place> places_of(const TrustedFollower& trusted) {
  const Places& places = trusted.follower().places();
  return std::vector<Place>(places.begin(), places.end());
}

std::tuple<std::vector<std::int32_t>, std::vector<double>> propose(const TrustedFollower& trusted,
                                                                   std::int64_t limit) {
  Proposal proposal = trusted.follower().propose(limit);
  return {std::move(proposal.tokens), std::move(proposal.shares)};
}

std::optional<std::tuple<std::vector<std::int32_t>, std::size_t, double, double>> best_draft(
    WrittenText& written, std::vector<double> passes, double other_seconds,
    double other_tokens, double best_rate) {
  auto draft = written.best_draft({std::move(passes), other_seconds, other_tokens, best_rate});
  if (!draft) return std::nullopt;
  return {{std::move(draft->tokens), draft->follower, draft->expected_tokens, draft->seconds}};
}

}  // namespace

void bind_texts(nb::module_& module) {
  module.attr("SEPARATOR") = kSeparator;
  nb::class_<IndexedText>(module, "IndexedText",
                          "Tokens, and where in them the end of a text occurs with a token to "
                          "follow.\n\n"
                          "SEPARATOR stands between two texts of an index. Cost: constant work and "
                          "28 to 56 bytes\na token, less where the text repeats itself.")
      .def(nb::init<>())
      .def("append", &IndexedText::append, "token_id"_a)
      .def("extend", &IndexedText::extend, "token_ids"_a, "Append many at once, or none.")
      .def("__len__", &IndexedText::size)
      .def_prop_ro("tokens", &tokens_of, "A copy.");
  nb::class_<Trust>(module, "Trust",
                    "How often the token after a match was right, by the length of the match.\n\n"
                    "Right tokens are counted against the agreement of the places, so that what is "
                    "learned\nis the factor that makes a share of places a probability. Both "
                    "counts forget.")
      .def(nb::init<>())
      .def("of_new_sequence", &Trust::of_new_sequence, "What a sequence starts from.")
      .def("record", &record, "match_length"_a, "share"_a, "right"_a)
      .def("factor", &factor, "match_length"_a);
  nb::class_<TrustedFollower>(module, "Follower",
                              "Keeps up with the places of a text that go on as the written text "
                              "does, and learns how\nfar they can be trusted.")
      .def_prop_ro(
          "match_length",
          [](const TrustedFollower& trusted) { return trusted.follower().match_length(); },
          "How many tokens before the places are known to be the last ones written.")
      .def_prop_ro("places", &places_of,
                   "Indices of the tokens that may come next, the best first.")
      .def_prop_ro("first_trust", &TrustedFollower::first_trust,
                   "The chance of the first token of a proposal; 0 if there is none.")
      .def("turn_to", &TrustedFollower::turn_to, "own"_a, "shared"_a,
           "Learn here from now on: what this sequence has seen, and what all have.")
      .def("start_at", &TrustedFollower::start_at, "place"_a,
           "Expect the text from here on, without a match before.")
      .def("propose", &propose, "limit"_a,
           "Up to `limit` tokens that may come next. For each, of the places that agreed so far, "
           "the\nshare that has this token too.");
  nb::class_<WrittenText>(module, "WrittenText",
                          "A text that is being written, and those who follow others meanwhile.")
      .def(nb::init<std::vector<std::int64_t>>(), "end_token_ids"_a = nb::make_tuple(),
           "After one of these nothing is proposed.")
      .def_prop_ro("text", &WrittenText::text)
      .def("follow", &WrittenText::follow, "text"_a,
           "Follow a text from the next token on: the written one, or another that may grow too.")
      .def(
          "push",
          [](WrittenText& written, std::int64_t token) {
            written.push(token);
            return written.has_proposal();
          },
          "token_id"_a,
          "The text goes on. Every token shows whether a proposal would have been right, so that\n"
          "nothing need be drafted to learn. Returns `has_proposal`.")
      .def_prop_ro("has_proposal", &WrittenText::has_proposal,
                   "Whether a draft is worth asking for.")
      .def("best_draft", &best_draft, "passes"_a, "other_seconds"_a, "other_tokens"_a,
           "best_rate"_a,
           "The proposal with most tokens a second, if that is more than `best_rate`.\n\n"
           "`passes` are seconds of the round's pass by tokens of the draft, from none to as many\n"
           "as there is room for, ascending; `other_seconds` are those of the rest of the round,\n"
           "`other_tokens` what its other sequences are expected to emit. Returns the draft, the\n"
           "number of its follower, what this sequence is expected to emit, seconds of the round.\n"
           "What is returned is taken to be drafted; None also where wrong drafts have cost too\n"
           "much, until those that were not made would have been right.");
}

}  // namespace paceline
