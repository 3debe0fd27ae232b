"""Results that grow: new pictures are put into a scene whose cameras stay where they are."""
