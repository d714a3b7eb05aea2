#include "paceline/draft_head.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace paceline {
namespace {

constexpr int kPiecePlaces = 128;
// A piece of places that does not begin with a panel, in whole panels.
constexpr int kPieceRoom =
    (kPanelRows - 1 + kPiecePlaces + kPanelRows - 1) / kPanelRows * kPanelRows;
constexpr int kCentroidGrain = 8;  // panels

int cluster_size(const DecoderShape& shape) {
  const int clusters = shape.num_centroids;
  if (clusters == 0) return shape.vocab_size;
  if (clusters < 0 || shape.vocab_size % clusters != 0 || shape.centroid_top_k < 1 ||
      shape.centroid_top_k > clusters) {
    throw std::invalid_argument(
        "a centroid head of " + std::to_string(clusters) + " clusters over " +
        std::to_string(shape.vocab_size) + " tokens, of which it keeps " +
        std::to_string(shape.centroid_top_k) +
        ": expected clusters of equal size, and no more kept than there are");
  }
  return shape.vocab_size / clusters;
}

// Panels `first` to `end` - 1 of a matrix.
Matrix panels_of(const Matrix& matrix, int first, int end) {
  const int outputs = std::min(end * kPanelRows, matrix.outputs) - first * kPanelRows;
  const std::size_t skipped =
      static_cast<std::size_t>(first) * panel_bytes(matrix.type, matrix.inner);
  return {matrix.type, outputs, matrix.inner, matrix.panels + skipped};
}

}  // namespace

DraftHead::DraftHead(ThreadPool& pool, const DecoderShape& shape)
    : pool_(pool),
      vocab_size_(shape.vocab_size),
      hidden_size_(shape.hidden_size),
      num_centroids_(shape.num_centroids),
      top_k_(shape.num_centroids > 0 ? shape.centroid_top_k : 1),
      cluster_size_(cluster_size(shape)),
      pieces_per_cluster_((cluster_size_ + kPiecePlaces - 1) / kPiecePlaces),
      order_(static_cast<std::size_t>(shape.vocab_size)),
      places_(order_.size()),
      is_ordered_(num_centroids_ == 0),
      centroid_scores_(static_cast<std::size_t>(num_centroids_)),
      chosen_(static_cast<std::size_t>(top_k_), 0),
      chosen_scores_(chosen_.size()),
      num_chosen_(num_centroids_ > 0 ? 0 : 1),
      workers_(static_cast<std::size_t>(pool.num_threads())),
      values_(static_cast<std::size_t>(top_k_) * static_cast<std::size_t>(pieces_per_cluster_) *
              kPiecePlaces * sizeof(double)) {
  std::iota(order_.begin(), order_.end(), 0);
  places_ = order_;
  scratch_.reserve(pool.num_threads(), 1, top_k_);
}

// ---- Loading ----

void DraftHead::expect(Parameters& parameters) {
  if (num_centroids_ == 0) {
    return parameters.matrix("embed_tokens.weight", vocab_size_, hidden_size_, matrix_);
  }
  parameters.matrix("masked_embedding.centroids.weight", num_centroids_, hidden_size_, centroids_);
  parameters.custom("embed_tokens.weight",
                    [this](const Tensor& tensor) { return load_embedding(tensor); });
  parameters.custom("masked_embedding.token_ordering",
                    [this](const Tensor& tensor) { return load_order(tensor); });
}

std::size_t DraftHead::load_embedding(const Tensor& tensor) {
  check_matrix(tensor, vocab_size_, hidden_size_);
  if (is_ordered_) return pack_in_order(tensor);
  waiting_ = tensor;
  if (!tensor.owner && !tensor.file) {
    const auto copy =
        std::make_shared<std::vector<std::uint8_t>>(tensor.data, tensor.data + tensor.size);
    waiting_.data = copy->data();
    waiting_.owner = copy;
  }
  return 0;
}

std::size_t DraftHead::load_order(const Tensor& tensor) {
  const std::size_t expected = order_.size() * sizeof(std::int64_t);
  if (tensor.dtype != "I64" || tensor.size != expected) {
    throw std::invalid_argument(tensor.name + " has " + std::to_string(tensor.size) + " bytes of " +
                                tensor.dtype + ": expected " + std::to_string(expected) +
                                " bytes of I64");
  }
  std::fill(places_.begin(), places_.end(), -1);
  for (std::size_t place = 0; place < order_.size(); ++place) {
    std::int64_t token;
    std::memcpy(&token, tensor.data + place * sizeof token, sizeof token);
    if (token < 0 || token >= vocab_size_ || places_[static_cast<std::size_t>(token)] >= 0) {
      throw std::invalid_argument(tensor.name + " is no permutation of the " +
                                  std::to_string(vocab_size_) + " tokens: it names " +
                                  std::to_string(token) +
                                  (token < 0 || token >= vocab_size_ ? "" : " twice"));
    }
    order_[place] = static_cast<std::int32_t>(token);
    places_[static_cast<std::size_t>(token)] = static_cast<std::int32_t>(place);
  }
  is_ordered_ = true;
  std::size_t bytes = 2 * order_.size() * sizeof(std::int32_t);
  if (waiting_.size > 0) bytes += pack_in_order(std::exchange(waiting_, {}));
  return bytes;
}

std::size_t DraftHead::pack_in_order(const Tensor& tensor) {
  const WeightType type = parse_weight_type(tensor);
  const RowTable table = rows_of(tensor, type, vocab_size_, hidden_size_);
  const std::size_t row_bytes = table.row_bytes();
  const std::size_t size = panel_bytes(type, hidden_size_);
  const int panels = num_panels(vocab_size_);
  AlignedBytes packed(static_cast<std::size_t>(panels) * size);
  std::vector<std::uint8_t> gathered(workers_.size() * kPanelRows * row_bytes);
  const auto pack_one = [&](int panel, std::uint8_t* rows) {
    const int count = std::min(kPanelRows, vocab_size_ - panel * kPanelRows);
    for (int r = 0; r < count; ++r) {
      std::uint8_t* row = rows + static_cast<std::size_t>(r) * row_bytes;
      table.read(order_[static_cast<std::size_t>(panel * kPanelRows + r)], row);
      if (is_finite_row(type, row, hidden_size_)) continue;
      throw NotFiniteError(tensor.name + " holds an infinity or NaN");
    }
    pack_panels(type, rows, count, hidden_size_, 0, 1,
                packed.data() + static_cast<std::size_t>(panel) * size);
  };
  Failure failure;
  pool_.run([&](Worker& worker) {
    std::uint8_t* rows =
        gathered.data() + static_cast<std::size_t>(worker.index()) * kPanelRows * row_bytes;
    worker.for_each(panels, 1, [&](int first, int end) {
      failure.guard([&] {
        for (int p = first; p < end; ++p) pack_one(p, rows);
      });
    });
  });
  failure.rethrow();
  bytes_ = std::move(packed);
  matrix_ = {type, vocab_size_, hidden_size_, bytes_.data()};
  return bytes_.size();
}

// ---- Drawing ----

void DraftHead::set_rule(const DrawRule& rule) {
  if (rule.bias_ids.size() != rule.biases.size()) {
    throw std::invalid_argument("there are " + std::to_string(rule.bias_ids.size()) +
                                " biased tokens but " + std::to_string(rule.biases.size()) +
                                " biases");
  }
  std::vector<std::pair<int, double>> placed;
  for (std::size_t i = 0; i < rule.biases.size(); ++i) {
    const std::int64_t token = rule.bias_ids[i];
    if (token < 0 || token >= vocab_size_) {
      throw std::invalid_argument("token " + std::to_string(token) +
                                  " has a bias, but the vocabulary ends at " +
                                  std::to_string(vocab_size_ - 1));
    }
    placed.emplace_back(places_[static_cast<std::size_t>(token)], rule.biases[i]);
  }
  std::sort(placed.begin(), placed.end());
  biases_ = {};
  for (const auto& [place, bias] : placed) {
    biases_.places.push_back(place);
    biases_.biases.push_back(bias);
  }
  temperature_ = rule.temperature;
  seed_ = rule.seed;
  std::fill(workers_.begin(), workers_.end(), PerWorker{});
}

DraftHead::Piece DraftHead::piece(int index) const {
  const int cluster = chosen_[static_cast<std::size_t>(index / pieces_per_cluster_)];
  const int skipped = index % pieces_per_cluster_ * kPiecePlaces;
  return {cluster * cluster_size_ + skipped, std::min(kPiecePlaces, cluster_size_ - skipped)};
}

double* DraftHead::values(int index) const {
  return values_.as<double>() + static_cast<std::ptrdiff_t>(index) * kPiecePlaces;
}

// Of equals the lower cluster; never one whose score is NaN.
void DraftHead::choose_clusters(Worker& worker, const Kernels& kernels, const Activations& x) {
  if (num_centroids_ == 0) return;
  CandidateList& list = scratch_.reset(worker.index(), 0, top_k_);
  const auto score = [&](int first, int end) {
    kernels.linear.multiply(centroids_, x, first, end, centroid_scores_.data(), num_centroids_);
    const int from = first * kPanelRows;
    const int count = std::min(end * kPanelRows, num_centroids_) - from;
    kernels.head.collect(centroid_scores_.data() + from, count, from, list);
  };
  worker.for_each(num_panels(num_centroids_), kCentroidGrain, score, [&] {
    merge_candidates(scratch_.lists(0), worker.num_workers(), top_k_, chosen_.data(),
                     chosen_scores_.data());
    num_chosen_ = static_cast<int>(std::find(chosen_.begin(), chosen_.end(), -1) - chosen_.begin());
  });
}

void DraftHead::score_pieces(int worker, const Kernels& kernels, const Activations& x, int first,
                             int end) {
  Leaders& leaders = workers_[static_cast<std::size_t>(worker)].scored;
  for (int index = first; index < end; ++index) {
    const Piece places = piece(index);
    const int first_panel = places.first / kPanelRows;
    const int end_panel = num_panels(places.first + places.count);
    alignas(kAlignment) float scores[kPieceRoom];
    kernels.linear.multiply(panels_of(matrix_, first_panel, end_panel), x, 0,
                            end_panel - first_panel, scores, kPieceRoom);
    double* to = values(index);
    for (int i = 0; i < places.count; ++i) to[i] = scores[places.first % kPanelRows + i];
    biases_.add(places.first, places.count, to);
    const std::int32_t* tokens = order_.data() + places.first;
    for (int i = 0; i < places.count; ++i) leaders.offer(to[i], tokens[i]);
  }
}

void DraftHead::put_noise(int worker, std::uint64_t position, int first, int end) {
  Leaders& noised = workers_[static_cast<std::size_t>(worker)].noised;
  for (int index = first; index < end; ++index) {
    const Piece places = piece(index);
    offer_noised(values(index), order_.data() + places.first, places.count, leaders_,
                 {temperature_, seed_, position}, noised);
  }
}

void DraftHead::merge_scored() {
  leaders_ = {};
  for (PerWorker& worker : workers_) leaders_.merge(std::exchange(worker.scored, {}));
  wants_noise_ = temperature_ > 0.0 && leaders_.finite();
}

Leaders DraftHead::merge_noised() {
  Leaders all;
  for (PerWorker& worker : workers_) all.merge(std::exchange(worker.noised, {}));
  return all;
}

}  // namespace paceline
