package simplequeuetest

var (
	// DropLeft drops the schemas that tests have left behind.
	DropLeft = dropLeft
	// WorkAll is Work that gives up after so many attempts.
	WorkAll = workAll
)
