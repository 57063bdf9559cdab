//! Guide chapters whose code examples are compiled.

#[doc = include_str!("../docs/guide/your-model.md")]
pub mod your_model {}

#[doc = include_str!("../docs/guide/your-engine.md")]
pub mod your_engine {}

#[doc = include_str!("../docs/guide/serving.md")]
pub mod serving {}

#[doc = include_str!("../docs/guide/choose-settings.md")]
pub mod choose_settings {}

#[doc = include_str!("../docs/guide/settings.md")]
pub mod settings {}

#[doc = include_str!("../docs/guide/telemetry.md")]
pub mod telemetry {}

#[doc = include_str!("../docs/guide/starting-points.md")]
pub mod starting_points {}

#[doc = include_str!("../docs/guide/performance.md")]
pub mod performance {}
