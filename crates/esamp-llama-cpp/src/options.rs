//! Options of a model and its context.

use crate::error::LlamaCppError;

/// Options of [`LlamaCpp::load`](crate::LlamaCpp::load).
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) threads: usize,
    pub(crate) cells: usize,
    pub(crate) max_rows: usize,
    pub(crate) batch: usize,
    pub(crate) gpu_layers: Option<usize>,
    pub(crate) unified_cache: bool,
    pub(crate) mmap: bool,
}

/// `GGML_MAX_N_THREADS` of llama.cpp, which the bindings leave out.
const MAX_THREADS: usize = 512;

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS),
            cells: 16_384,
            max_rows: 64,
            batch: 512,
            gpu_layers: Some(0),
            unified_cache: true,
            mmap: true,
        }
    }
}

impl Options {
    /// Maximum number of rows that llama.cpp supports in one context.
    pub const MAX_ROWS: usize = 256;

    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// CPU threads, 1 to 512. They are started on loading and sleep between passes. Default: all that the process may
    /// use.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Tokens for which the KV cache has room, over all rows; at least one per row. Default: 16,384. The memory is
    /// reserved on loading, for at most the model's trained context length in every row. With a unified cache, a
    /// prompt's cells are shared by its completions. With separate buffers, each row has room for `cells / max_rows`
    /// tokens, rounded up to a multiple of 256: 256 by default. llama.cpp's `n_ctx`.
    pub fn with_cells(mut self, cells: usize) -> Self {
        self.cells = cells;
        self
    }

    /// Maximum number of rows in use, over all caches of the model, 1 to [`MAX_ROWS`](Self::MAX_ROWS). Default: 64.
    /// llama.cpp's `n_seq_max`.
    pub fn with_max_rows(mut self, rows: usize) -> Self {
        self.max_rows = rows;
        self
    }

    /// Maximum number of tokens that llama.cpp reads at once, at least 1. Default: 512. Longer passes are split. A step
    /// with one token per row is never split. llama.cpp's `n_batch` and `n_ubatch`.
    pub fn with_batch(mut self, tokens: usize) -> Self {
        self.batch = tokens;
        self
    }

    /// Number of layers to compute on the GPU; `None` means all. Default: 0. Anything else is an error if llama.cpp was
    /// built without a GPU backend or finds no GPU.
    pub fn with_gpu_layers(mut self, layers: impl Into<Option<usize>>) -> Self {
        self.gpu_layers = layers.into();
        self
    }

    /// Whether all rows share one KV buffer. Default: true. A shared buffer stores a prompt once for all of its
    /// completions, but every row attends over the cells of all rows. Separate buffers copy the prompt to each row and
    /// are faster with many rows; set [`with_cells`](Self::with_cells) to `max_rows` times the longest row then.
    pub fn with_unified_cache(mut self, unified: bool) -> Self {
        self.unified_cache = unified;
        self
    }

    /// Whether weights are mapped from the file instead of read. Default: true.
    pub fn with_mmap(mut self, mmap: bool) -> Self {
        self.mmap = mmap;
        self
    }

    pub(crate) fn check(&self) -> Result<(), LlamaCppError> {
        let most = i32::MAX as usize;
        let ranges = [
            ("threads", self.threads, 1, MAX_THREADS),
            ("max_rows", self.max_rows, 1, Self::MAX_ROWS),
            // llama.cpp reads at most this number of tokens at once, and a step reads one of each row.
            ("cells", self.cells, self.max_rows, most),
            ("batch", self.batch, 1, most),
            ("gpu_layers", self.gpu_layers.unwrap_or(0), 0, most),
        ];
        for (option, got, least, most) in ranges {
            if !(least..=most).contains(&got) {
                let expected = format!("{least} to {most}");
                return Err(LlamaCppError::Option { option, expected, got: got.to_string() });
            }
        }
        Ok(())
    }
}
