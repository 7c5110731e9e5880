//! Filter, score, bind.
