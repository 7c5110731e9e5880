//! One module per controller: a pure reconcile and a thin loop.
