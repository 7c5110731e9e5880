//! The object model: catalogue of resources, defaults, validation, selectors, quantities, tables, patches, schemas.
