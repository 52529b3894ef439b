// A Keyward client in Go, written from proto/keyward/v1/keywrap.proto alone.
//
//	keyward-go [unwrap] -socket PATH [-context-file F] <WRAPPED >DEK
//	keyward-go wrap     -socket PATH -kek NAME [-context-file F] <DEK >WRAPPED
//
// A wrapped DEK is a serialized WrappedDek message. DEKs go over the connection in the clear;
// sealed delivery is in the proto's head, and in ../python/sealed.py. Exit code: 0 done, 1
// refused, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "keyward.example/keywardv1"
)

const (
	deadline = 10 * time.Second
	// More than any input may have; the sidecar refuses what is too long.
	inputMax = 64 << 10
)

var errUsage = errors.New("usage: keyward-go [unwrap|wrap] -socket PATH [-kek NAME] [-context-file F] <INPUT >OUTPUT")

// connect dials when the first call is made.
func connect(socket string) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}
	// The socket's file mode, and the uid that the kernel tells the sidecar, are what protects
	// this connection. The authority is one that HTTP/2 servers take; a path is none. Both
	// functions go by other names since 1.63, and work under these throughout 1.x.
	return grpc.Dial("localhost", grpc.WithInsecure(), grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(dial))
}

func run() error {
	args, command := os.Args[1:], "unwrap"
	if len(args) > 0 && (args[0] == "unwrap" || args[0] == "wrap") {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", "", "the sidecar's Unix socket")
	kek := flags.String("kek", "", "name of the KEK")
	contextFile := flags.String("context-file", "", "bytes that the DEK is bound to")
	if flags.Parse(args) != nil || flags.NArg() > 0 || *socket == "" || (command == "wrap" && *kek == "") {
		return errUsage
	}
	var bound []byte
	if *contextFile != "" {
		var err error
		if bound, err = os.ReadFile(*contextFile); err != nil {
			return err
		}
	}
	input, err := io.ReadAll(io.LimitReader(os.Stdin, inputMax))
	if err != nil {
		return err
	}
	connection, err := connect(*socket)
	if err != nil {
		return err
	}
	defer connection.Close()
	keyward := pb.NewKeyWrapClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()

	var output []byte
	switch command {
	case "wrap":
		answer, err := keyward.Wrap(ctx, &pb.WrapRequest{Kek: *kek, Dek: input, Context: bound})
		if err != nil {
			return err
		}
		if output, err = proto.Marshal(answer.GetWrapped()); err != nil {
			return err
		}
	default:
		wrapped := &pb.WrappedDek{}
		if err := proto.Unmarshal(input, wrapped); err != nil {
			return fmt.Errorf("the input is not a serialized WrappedDek: %w", err)
		}
		answer, err := keyward.Unwrap(ctx, &pb.UnwrapRequest{Wrapped: wrapped, Context: bound})
		if err != nil {
			return err
		}
		output = answer.GetDek()
	}
	_, err = os.Stdout.Write(output)
	return err
}

// explain prints what a status says: message, code, reason, and when to try again.
func explain(err error) {
	refused, ok := status.FromError(err)
	if !ok {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		return
	}
	fmt.Fprintf(os.Stderr, "error: %s\ncode: %s\n", refused.Message(), refused.Code())
	for _, detail := range refused.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == "keyward" {
				fmt.Fprintf(os.Stderr, "reason: %s\n", detail.GetReason())
			}
		case *errdetails.RetryInfo:
			delay := detail.GetRetryDelay()
			after := time.Duration(delay.GetSeconds())*time.Second + time.Duration(delay.GetNanos())
			fmt.Fprintf(os.Stderr, "retry after: %s\n", after)
		}
	}
}

func main() {
	err := run()
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	default:
		explain(err)
		os.Exit(1)
	}
}
