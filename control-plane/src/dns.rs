//! DNS answers from the catalogue.
