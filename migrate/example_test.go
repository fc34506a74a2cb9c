package migrate_test

import (
	"fmt"
	"strings"

	"github.com/simplequeue/simplequeue/migrate"
)

// The grants are for the schema's owner to run, after each migration.
func ExampleGrants() {
	sql, err := migrate.Grants("shop", migrate.Roles{Enqueue: "shop_web"})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, role := range []string{"shop_web", "shop_work", "shop_admin"} {
		fmt.Println(role, strings.Contains(sql, role))
	}
	// Output:
	// shop_web true
	// shop_work true
	// shop_admin true
}
