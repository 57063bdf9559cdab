//! Custom filters, reweighters and selections in the settings.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{Serialize, Serializer, ser::Error};

/// A custom [filter](crate::filters::FilterConfig::Custom),
/// [reweighter](crate::reweighters::ReweighterConfig::Custom) or [selection](crate::Selection::Custom) in a setting
/// that otherwise names a built-in one. Cheap to clone, and equal only to its clones.
///
/// It cannot be serialised: serialising settings that contain one is an error, so that a file never silently omits a
/// part of the settings.
pub struct Custom<T: ?Sized>(pub(crate) Arc<T>);

impl<T: ?Sized> Clone for Custom<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ?Sized> Deref for Custom<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Custom<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: ?Sized> PartialEq for Custom<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: ?Sized + fmt::Debug> Serialize for Custom<T> {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        let message = "expected built-in filters, reweighters and selections, got a custom one";
        Err(S::Error::custom(format!("{message}: {:?}", &self.0)))
    }
}
