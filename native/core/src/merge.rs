//! (see the module's documentation)
