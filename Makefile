.PHONY: test ci matrix

# What CONTRIBUTING.md asks for: the tests find a PostgreSQL or start one.
test:
	go test ./...

# Everything that must hold before a change is merged.
ci:
	bash .ci/run

# The tests on each supported PostgreSQL: make matrix, or make matrix VERSIONS="14 18" TESTS=./migrate
matrix:
	.ci/matrix $(VERSIONS) -- $(TESTS)
