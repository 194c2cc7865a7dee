//! N-API surface.
