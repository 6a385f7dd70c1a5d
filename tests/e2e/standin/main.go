// The program of the images that stand in for critest's: a web server under the name of nginx, or a process that
// tells its effective user. It is linked statically, so that an image needs nothing but this file.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
		return
	}
	number := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if err := os.WriteFile("/var/run/nginx.pid", number, 0o644); err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(os.Stderr, "httpd -D FOREGROUND")
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(answer, "<h1>Welcome to nginx!</h1>")
	})
	go func() { log.Fatal(http.ListenAndServe(":"+os.Args[1], nil)) }()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	<-ended
}
