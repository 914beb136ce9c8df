"""Detection without storage, as inference protocols have it; nothing here knows Ray, or KServe's package."""
