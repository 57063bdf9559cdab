//! stub
use crate::{candidates::Candidates, draw::Draw, id::TokenId};
pub(crate) fn select(_c: &Candidates, _d: Draw, _greedy: bool) -> (TokenId, f32) {
    todo!()
}
